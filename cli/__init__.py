"""The `tidemill` command: one module a command. Starts workers as processes, and is none."""
