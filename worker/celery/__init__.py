"""The seam to Celery: the pool, the task and fixes for kombu. Only this package knows Celery."""
