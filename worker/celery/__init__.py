"""The seam to Celery: the pool, the task, and the mends of kombu. Nothing else knows Celery."""
