"""The protocol between the worker and the engine process: messages, settings and limits."""
