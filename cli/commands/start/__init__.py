"""Commands that start something: the stack, a worker, the schema, the demo."""
