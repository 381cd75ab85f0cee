"""`tidemill status`: shows Redis, the database, the workers and the jobs at a glance."""

from typing import Any

import typer

from cli import options
from cli.commands.look_after.messages import num_set_aside
from cli.commands.look_after.models import requests_by_way
from cli.output.terminal import plural, print_table, say, table, write_json


def status(json: options.Json = False) -> None:
    """Show Redis, the database, the live workers and the jobs by model and state.

    The exit status is 1 if Redis does not answer.
    """
    from cli.errors import BrokerUnreachable
    from cli.stack.broker import BrokerState, read_broker
    from cli.stack.ready import require_ready, start_command
    from db.connection.url_redaction import masked
    from db.queries import worker_registry
    from db.queries.jobs import submission
    from db.schema import head
    from db.states import JobState
    from tasks.configuration import settings
    from tasks.queues import queue_names

    database = require_ready()
    with database.read() as session:
        workers = session.scalars(worker_registry.live_workers()).all()
        jobs: dict[str, dict[JobState, int]] = {}
        for model, state, num in session.execute(submission.states_by_model()):
            jobs.setdefault(model, {})[JobState(state)] = num
    num_messages = num_set_aside(database)
    served = sorted({model for worker in workers for model in worker.room})
    queues = queue_names(sorted({*served, *filter(None, jobs)}))
    broker: BrokerState | BrokerUnreachable
    try:
        broker = read_broker(settings.broker_url(), queues)
    except BrokerUnreachable as error:
        broker = error
    if json:
        write_json(
            {
                "redis": {
                    "url": masked(settings.broker_url()),
                    **(
                        {"reachable": False, "error": str(broker)}
                        if isinstance(broker, BrokerUnreachable)
                        else {
                            "reachable": True,
                            "version": broker.version,
                            "maxmemory_policy": broker.eviction,
                            "num_bytes": broker.num_bytes,
                            "messages": broker.messages,
                            "num_unacked": broker.num_unacked,
                        }
                    ),
                },
                "database": {"url": database.shown_url, "revision": head()},
                "workers": [
                    {
                        "name": worker.name,
                        "models": worker.room,
                        "started_at": worker.started_at.isoformat(),
                        "engines": [
                            {
                                "model": engine["model"],
                                "reason": engine["card"].get("engine_reason"),
                                "requests": engine.get("requests"),
                            }
                            for engine in worker.engines or []
                        ],
                    }
                    for worker in workers
                ],
                "num_messages_set_aside": num_messages,
                "jobs": {
                    model: {state.value: num for state, num in states.items()}
                    for model, states in jobs.items()
                },
            }
        )
    else:
        if isinstance(broker, BrokerUnreachable):
            say(f"Redis     {broker}")
        else:
            say(
                f"Redis     {masked(settings.broker_url())}, version {broker.version}, "
                f"{broker.num_bytes / 2**20:,.1f} MiB, "
                f"{plural(broker.num_unacked, 'message')} unacked"
            )
        say(f"Database  {database.shown_url}, revision {head()}")
        say(f"Workers   {len(workers) or f'none is running; start one with {start_command()}'}")
        for worker in workers:
            since = f"{worker.started_at.astimezone():%Y-%m-%d %H:%M}"
            say(f"          {worker.name}, since {since}: {', '.join(sorted(worker.room))}")
            for engine in worker.engines or []:
                reason = engine["card"].get("engine_reason")
                detail = f" ({reason})" if reason else ""
                say(f"            {engine['model']}: {requests_by_way([engine])}{detail}")
        if num_messages:
            say(
                f"Messages  {num_messages:,} set aside, which could not be taken; "
                "`tidemill messages` lists them"
            )
        _print_jobs(jobs, served, broker.messages if isinstance(broker, BrokerState) else None)
    if isinstance(broker, BrokerUnreachable):
        raise typer.Exit(1)


def _print_jobs(jobs: Any, served: list[str], messages: dict[str, int] | None) -> None:
    """Print a table of jobs. messages: by queue; None if Redis does not answer"""
    from db.lane import Lane
    from db.states import JobState
    from tasks.queues import SUBMISSIONS, queue_name

    if not jobs and not served:
        say("Jobs      none yet")
        return
    say("")
    listing = table("model", *JobState, "messages in Redis")
    for column in listing.columns[1:]:
        column.justify = "right"

    def waiting(model: str) -> str:
        if messages is None:
            return "unknown"
        return f"{sum(messages.get(queue_name(model, lane), 0) for lane in Lane):,}"

    for model in sorted({*jobs, *served}):
        states = jobs.get(model, {})
        listing.add_row(
            model or "(refused)",
            *(f"{num:,}" if (num := states.get(state, 0)) else "" for state in JobState),
            waiting(model) if model else "",
        )
    print_table(listing)
    if messages and messages.get(SUBMISSIONS):
        say(f"{plural(messages[SUBMISSIONS], 'message')} from producers still to be read")
