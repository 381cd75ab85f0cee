"""`tidemill up`: runs everything on this machine, in one process tree."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output.terminal import err, note, say
from cli.usage import program

if TYPE_CHECKING:
    from cli.stack.local_stack import LocalStack

POLL_SECONDS = 0.25
EXAMPLES = {  # which the toy models of a checkout know how to answer
    "summarize": "The tea was already cold. On Saturday the Lucky Tern came into Eelgate. "
    "She carried twelve sacks of oats. Captain Nora Flint means to sail again at dusk.",
    "translate": "The miller opens the gate.",
    "generate": "Once upon a time",
    "chat": "Who keeps the lighthouse at Saltmere?",
}


def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The folder for all data; default TIDEMILL_DATA_DIR or .tidemill."),
    ] = None,
    models: options.Models = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the worker's log.")] = False,
    metrics_port: options.MetricsPort = None,
) -> None:
    """Start everything: Redis, the database and a worker. Ctrl-C stops it all.

    Valkey and SQLite are embedded, unless TIDEMILL_REDIS_URL and TIDEMILL_DATABASE_URL name others.
    Commands in this folder use what is started here.
    """
    from cli.stack.interrupts import Interrupts
    from cli.stack.local_stack import LocalStack
    from db.connection.address import data_dir as default_data_dir
    from tasks.configuration.catalog import Catalog
    from tasks.configuration.redis_url import read_redis_url
    from tasks.configuration.settings import config_path

    redis_url = os.environ.get("TIDEMILL_REDIS_URL")
    # What an earlier `up` wrote of itself must not stand in for this folder's settings.
    config = config_path({**os.environ, "TIDEMILL_DATA_DIR": os.devnull}, Path.cwd())
    Catalog.load(config).only(tuple(filter(None, (models or "").split(","))))
    folder = data_dir or default_data_dir(os.environ, Path.cwd())
    stack = LocalStack(
        folder,
        config,
        models=models,
        redis_url=read_redis_url(redis_url) if redis_url else None,
        database_url=os.environ.get("TIDEMILL_DATABASE_URL"),
        metrics_port=metrics_port,
    )
    with Interrupts() as interrupts:
        try:
            with err.status("starting"):
                stack.start_stores()
            with err.status("loading the models") as spinner:
                if verbose:
                    spinner.stop()
                stack.start_worker()
                stack.wait_for_worker(interrupts.raise_if_any)
            stack.announce()
            _greet(stack, folder)
            while not interrupts.wait(POLL_SECONDS):
                if verbose:
                    stack.show_log()
                stack.check()
        except KeyboardInterrupt:
            pass  # while it was starting; what was started is stopped below
        finally:
            if interrupts.any():
                note("stopping when the running jobs are finished; Ctrl-C again stops at once")
            stack.stop(interrupts.several)


def _greet(stack: "LocalStack", folder: Path) -> None:
    from db.connection.address import data_dir as default_data_dir
    from db.connection.url_redaction import masked
    from tasks.configuration.catalog import Catalog

    catalog = Catalog.load(Path(stack.environment["TIDEMILL_CONFIG"]))
    first = next(iter(catalog.models.values()))
    task = first.tasks[0]
    pair = next(iter(first.pairs), "en>fr").split(">")
    languages = (
        f" --source-language {pair[0]} --target-language {pair[1]}" if task == "translate" else ""
    )
    say(f"Redis     {masked(stack.redis_url)}")
    say(f"Database  {stack.database.shown_url}")
    say(f"Worker    ready, its log is {stack.log}")
    if stack.metrics_port is not None:
        say(f"Metrics   http://127.0.0.1:{stack.metrics_port}/metrics")
    if stack.data_dir != default_data_dir(os.environ, Path.cwd()).resolve():
        say(f"Commands find it with TIDEMILL_DATA_DIR={shlex.quote(str(folder))}")
    say("\nIn another terminal, in this folder:\n")
    say(f'  {program()} submit {task} "{EXAMPLES[task]}"{languages} --wait')
    say(f"  {program()} status")
    say(f"  {program()} results")
    say("\nCtrl-C stops everything.")
