"""Translation of documents: preserves the layout, finds sentences, keeps terms and placeholders."""
