"""Files that commands write: results in tables and in folders."""
