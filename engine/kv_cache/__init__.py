"""KV caches of running sequences, and how their memory is planned."""
