"""Pictures with labels: one reader a format, the catalog, the views, the doctor."""
