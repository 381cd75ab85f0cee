"""The cache: outputs that need not be computed, of earlier attempts and of equal requests."""
