"""Commands that read: jobs, batches, results and how good they are."""
