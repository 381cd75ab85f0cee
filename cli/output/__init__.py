"""What commands print: tables, progress bars, JSON, CSV, Parquet."""
