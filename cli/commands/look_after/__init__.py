"""Commands that maintain a deployment: models, messages, texts, keys, the audit."""
