"""Records -> tables: what is comparable with what, compared, ranked, beside what was published."""
