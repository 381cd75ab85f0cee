"""The `tidemill` command, one module for each subcommand. It starts workers as processes."""
