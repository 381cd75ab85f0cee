"""What crosses the pipe between the worker and the engine process."""
