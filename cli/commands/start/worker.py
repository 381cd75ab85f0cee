"""`tidemill worker`: runs Celery's worker, after checking that everything it needs is there."""

import os
import sys
from typing import Annotated

import typer

from cli import options


def worker(
    models: options.Models = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Messages in flight; default by the number of models."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its name as a Celery node; default by process id.")
    ] = None,
    loglevel: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    metrics_port: options.MetricsPort = None,
) -> None:
    """Start a worker in the foreground; SIGTERM or Ctrl-C lets it finish its running jobs.

    It is `celery -A tasks worker`, so Celery's tools can manage it.
    """
    from cli.stack.broker import read_broker
    from cli.stack.ready import require_ready
    from tasks.configuration import settings

    aliases = tuple(filter(None, (models or os.environ.get("TIDEMILL_MODELS", "")).split(",")))
    settings.catalog().only(aliases)
    require_ready().close()
    read_broker(settings.broker_url())
    environment = {**os.environ, "TIDEMILL_MODELS": ",".join(aliases)}
    command = celery_command(name or f"tidemill-{os.getpid()}", concurrency, loglevel)
    if metrics_port is not None:
        environment["TIDEMILL_METRICS_PORT"] = str(metrics_port)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def celery_command(name: str, concurrency: int | None = None, loglevel: str = "INFO") -> list[str]:
    """The worker's command line. Its settings are those of the Celery app."""
    command = [sys.executable, "-P", "-m", "cli.stack.celery_main", "-A", "tasks", "worker"]
    # Both only serve workers that talk to each other; ours talk to the database.
    command += ["--without-gossip", "--without-mingle"]
    command += ["-n", f"{name}@%h", "--loglevel", loglevel]
    if concurrency is not None:
        command += ["--concurrency", str(concurrency)]
    return command
