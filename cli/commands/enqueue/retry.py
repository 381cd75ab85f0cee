"""`tidemill retry`: requeues finished jobs."""

from typing import Annotated

import typer

from cli import options


def retry(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB", help="Job ids.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="The jobs of a batch: name, run key or id.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only jobs in this state: failed, cancelled or expired. Default: failed, and any "
            "of the three for named jobs."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Put jobs that did not succeed back in line, with no failures counted."""
    from sqlalchemy import select

    from cli.job_selection import selected_jobs
    from db.audit import Act
    from db.clock import now
    from db.models import Job
    from db.queries.jobs import cancel_retry
    from db.states import RETRIABLE, JobState
    from tasks.submission.notifications import Notifier

    for name in state or ():
        if name not in RETRIABLE:
            raise typer.BadParameter(
                f"{name!r} is none of {', '.join(sorted(RETRIABLE))}", param_hint="--state"
            )
    selection = selected_jobs(jobs or [], batch)
    named = [JobState(name) for name in state or ()]
    states = named or ([JobState.FAILED] if batch is not None else list(RETRIABLE))
    # A contract that was refused when it came by message has no model to go to.
    can_run = Job.model != ""
    with selection.database.read() as session:
        asked_at = session.execute(select(now())).scalar_one()
    # Of those that failed before this was asked: some may run and fail again meanwhile.
    condition = selection.condition & can_run & (Job.finished_at <= asked_at)
    with Notifier() as notifier:
        changed = selection.change(
            Act.RETRY,
            lambda limit: cancel_retry.retry_jobs(condition, states, limit),
            on_changed=notifier.notify,
        )
    selection.report("queued again", changed, f"not {' or '.join(sorted(states))}", json)
