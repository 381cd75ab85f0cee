"""`python -P -m cli.stack.celery_main`: Celery's own command line, our packages first.

Celery looks for modules in the folder it is started in before anywhere else.
Many folders have a `tasks.py` or a `worker` of their own; they come last here.
"""

import os
import sys


def main() -> None:
    # Celery inserts the folder at the front unless it is in the path already.
    sys.path.append(os.getcwd())
    from celery.__main__ import main as celery

    sys.argv[0] = "celery"
    celery()


if __name__ == "__main__":
    main()
