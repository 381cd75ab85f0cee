"""Plans how much memory keys and values may take."""
