"""Long documents: where they are cut, and what of them a result covers."""
