"""The threads around the loop, and the queues between them."""
