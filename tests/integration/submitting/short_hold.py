"""A worker that imports this sends a message back after two seconds without the database, and
not after thirty.

For the tests: `celery worker --include tests.integration.submitting.short_hold`.
"""

from tasks.submission import message

message.HOLD_SECONDS = 2.0
