"""Read-only queries: jobs, batches and figures of the database."""
