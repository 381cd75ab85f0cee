"""A worker that imports this gives up waiting for a lock after three seconds, not thirty.

For the tests: `celery worker --include tests.chaos.short_locks`.
"""

from db import session

session.LOCK_SECONDS = 3.0
