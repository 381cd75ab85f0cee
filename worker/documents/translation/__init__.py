"""Translation of documents: form kept, sentences found, terms and placeholders held."""
