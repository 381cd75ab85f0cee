"""Output of commands: tables, progress bars, JSON, CSV, Parquet."""
