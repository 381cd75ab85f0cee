"""How each demo model is made: its tokenizer, its shape and what it learns from the world."""
