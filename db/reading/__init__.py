"""Reading: jobs, batches and figures of the database, for those who change nothing."""
