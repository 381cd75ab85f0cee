"""`tidemill cancel`: cancels unfinished jobs."""

from typing import Annotated

import typer

from cli import options


def cancel(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB", help="Job ids.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Every unfinished job of a batch: name, run key or id.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Cancel jobs that are not finished. A running one writes no result."""
    from cli.job_selection import selected_jobs
    from db.audit import Act
    from db.queries.jobs import cancel_retry

    selection = selected_jobs(jobs or [], batch)
    changed = selection.change(
        Act.CANCEL, lambda limit: cancel_retry.cancel_jobs(selection.condition, limit)
    )
    selection.report("cancelled", changed, "finished already", json)
