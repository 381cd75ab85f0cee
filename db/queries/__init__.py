"""Every statement that changes a job, each a named function, by what it is about.

A change of state carries its condition, so running a statement twice, or too
late, changes nothing. What a worker runs all the time is built once (`cache`):
to SQLAlchemy building a statement is as much work as running it.
"""

from db.queries.batches import (
    batch_by_run_key,
    close_batch,
    has_unfinished,
    job_states,
    states_by_batch,
    states_by_model,
)
from db.queries.cancel_retry import cancel_jobs, retry_jobs
from db.queries.claims import claim, jobs_among, payloads_of
from db.queries.conditions import QUEUED, RUNNING
from db.queries.deadlines import expire_overdue
from db.queries.expiry import has_run_out
from db.queries.inserts import insert_unless_there
from db.queries.leadership import lead, resign
from db.queries.leases import renew_leases, requeue_expired_leases, running_attempts
from db.queries.outcomes import finish_attempts, insert_attempts, insert_results, succeed_attempts
from db.queries.paging import after, in_order
from db.queries.publishing import (
    mark_published,
    next_to_publish,
    outstanding_by_model,
    published_long_ago,
    unpublish_queued,
)
from db.queries.quarantine import (
    delete_quarantined,
    insert_quarantined,
    num_quarantined,
    quarantined,
)
from db.queries.segments import (
    delete_segments,
    insert_segments,
    running_among,
    segments_of,
)
from db.queries.submission import (
    PRIORITY_SECONDS,
    insert_jobs,
    insert_payloads,
    jobs_by_idempotency_key,
    refresh_statistics,
)
from db.queries.workers import forget_worker, live_workers, report_worker, room_of_live_workers

__all__ = [
    "PRIORITY_SECONDS",
    "QUEUED",
    "RUNNING",
    "after",
    "batch_by_run_key",
    "cancel_jobs",
    "claim",
    "close_batch",
    "delete_quarantined",
    "delete_segments",
    "expire_overdue",
    "finish_attempts",
    "forget_worker",
    "has_run_out",
    "has_unfinished",
    "in_order",
    "insert_attempts",
    "insert_jobs",
    "insert_payloads",
    "insert_quarantined",
    "insert_results",
    "insert_segments",
    "insert_unless_there",
    "job_states",
    "jobs_among",
    "jobs_by_idempotency_key",
    "lead",
    "live_workers",
    "mark_published",
    "next_to_publish",
    "num_quarantined",
    "outstanding_by_model",
    "payloads_of",
    "published_long_ago",
    "quarantined",
    "refresh_statistics",
    "renew_leases",
    "report_worker",
    "requeue_expired_leases",
    "resign",
    "retry_jobs",
    "room_of_live_workers",
    "running_among",
    "running_attempts",
    "segments_of",
    "states_by_batch",
    "states_by_model",
    "succeed_attempts",
    "unpublish_queued",
]
