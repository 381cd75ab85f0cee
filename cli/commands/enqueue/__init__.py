"""Commands that enqueue jobs, cancel them or let them run again."""
