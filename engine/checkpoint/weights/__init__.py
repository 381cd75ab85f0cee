"""The weights of a checkpoint: read, checked, hashed and laid out."""
