"""Commands that read: jobs, batches, results and their quality."""
