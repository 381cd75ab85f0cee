"""The commands, one module each, in the groups that `tidemill --help` shows."""
