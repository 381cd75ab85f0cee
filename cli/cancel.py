"""`tidemill cancel`: jobs that shall not be run."""

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
    """Cancel jobs that are not finished. What is running writes no result."""
    from cli.chosen import chosen_jobs
    from db import queries

    chosen = chosen_jobs(jobs or [], batch)
    with chosen.database.write() as session:
        changed = session.scalars(queries.cancel_jobs(chosen.condition)).all()
    chosen.report("cancelled", changed, "finished already", json)
