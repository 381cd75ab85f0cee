"""Times that are over: whether there is a lease or a deadline for somebody to see to."""

from functools import cache

from sqlalchemy import Select, func, or_, select

from db.clock import now
from db.models import Job
from db.queries.conditions import RUNNING


@cache
def has_run_out() -> Select[bool]:
    """Whether the lease of a running job, or the deadline of an unfinished one, has passed.

    By the first of each: to find the first in an index costs the same whatever the planner
    believes of the others, and it may believe that a look at the table finds one sooner.
    """
    lease = select(func.min(Job.lease_until)).where(Job.state == RUNNING)
    deadline = select(func.min(Job.deadline)).where(
        Job.deadline.is_not(None), Job.finished_at.is_(None)
    )
    return select(
        or_(lease.scalar_subquery() < now(), deadline.scalar_subquery() <= now()).label("run_out")
    )
