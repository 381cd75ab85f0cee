"""A small world by the sea, described by a grammar: the training texts of the demo models."""
