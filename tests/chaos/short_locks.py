"""A worker that imports this gives a lock up after three seconds, and not after thirty.

For the tests: `celery worker --include tests.chaos.short_locks`.
"""

from db import session

session.LOCK_SECONDS = 3.0
