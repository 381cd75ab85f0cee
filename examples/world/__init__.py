"""A small world by the sea, told by a grammar: the text that the demo models learn from."""
