"""Forward passes of decoder-only and encoder-decoder models, and how their steps are executed."""
