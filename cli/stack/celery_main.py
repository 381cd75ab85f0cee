"""`python -P -m cli.stack.celery_main -A tasks worker`: Celery's worker, with our packages first.

Celery searches the folder that it is started in before all others, and many folders have their own
`tasks.py` or `worker`; here that folder comes last.
"""

import gc
import os
import sys

import click


# Celery's own group loads every other command as well, a shell and Flower among them, which is
# a tenth of a worker's start. It goes by the same name, by which `tasks.celeryconfig` knows it.
@click.group("celery")
@click.option("-A", "--app", required=True)
@click.pass_context
def celery(context: click.Context, app: str) -> None:
    from celery.app.utils import find_app
    from celery.bin.base import CLIContext

    no_color = bool(os.environ.get("NO_COLOR"))
    context.obj = CLIContext(find_app(app), no_color=no_color, workdir=None)


def main() -> None:
    # Until the worker is ready, for imports make no garbage: a fifth of its start went on looking.
    gc.disable()
    # Celery inserts the folder at the front unless it is in the path already.
    sys.path.append(os.getcwd())
    from celery.bin.worker import worker

    celery.add_command(worker)
    celery(prog_name="celery", auto_envvar_prefix="CELERY")


if __name__ == "__main__":
    main()
