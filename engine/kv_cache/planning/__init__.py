"""How much memory keys and values take and may take."""
