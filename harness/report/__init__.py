"""One web page of records: tables, plots and pictures, with where every number comes from."""
