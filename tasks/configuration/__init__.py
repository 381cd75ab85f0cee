"""Configuration: the environment and the tables of `tidemill.toml`."""
