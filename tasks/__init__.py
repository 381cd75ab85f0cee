"""Tasks: the contract of each kind of job, and how to submit one.

    from tasks import summarize
    job = summarize.submit(text="...")
    print(job.wait().output)

Importing this loads Celery, pydantic and SQLAlchemy; never torch.
"""

from tasks import chat, generate, summarize, translate
from tasks.app import app
from tasks.submission.batch import submit_batch
from tasks.submission.submitted import SubmittedBatch, SubmittedJob

__all__ = [
    "SubmittedBatch",
    "SubmittedJob",
    "app",
    "chat",
    "generate",
    "submit_batch",
    "summarize",
    "translate",
]
