"""The engine loop, its scheduler and the threads that feed it. No torch."""
