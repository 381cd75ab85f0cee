"""Commands that look after a deployment: models, messages, texts, keys, the audit."""
