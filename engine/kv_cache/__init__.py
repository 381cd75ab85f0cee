"""KV caches of running sequences, and the planning of their memory."""
