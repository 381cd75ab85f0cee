"""Forward passes: decoder-only, encoder-decoder, and how a step is executed."""
