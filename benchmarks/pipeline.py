"""What the queue costs: enqueue rate, and jobs/s through Redis, worker and database.

    python -m benchmarks.pipeline [--jobs 20000] [--documents 50000]

The engine is the fake one, which costs next to nothing, so that what is left is
the road itself: contract, insert, publish, receive, claim, pipe, commit, ack. It
runs on SQLite and on PostgreSQL, each started by the script, with a Valkey and
a Celery worker in processes of their own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import PostgresServer, ValkeyServer

CONFIG = """
[models.parrot]
checkpoint = "fake"
engine = "fake"
tasks = ["generate"]
max_sequences = 256
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=20_000, help="through the whole road")
    parser.add_argument("--documents", type=int, default=50_000, help="enqueued, of about 1 kB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "tidemill.toml").write_text(CONFIG)
        for part in ("valkey", "postgres"):
            (folder / part).mkdir()
        with (
            ValkeyServer.started(folder / "valkey") as valkey,
            PostgresServer.started(folder / "postgres") as postgres,
        ):
            print("database    enqueue docs/s   peak MiB   whole road jobs/s")
            for database in ("sqlite", "postgresql"):
                for number in range(2):  # one to enqueue into, one to run
                    url = (
                        f"sqlite:///{folder}/{number}.db"
                        if database == "sqlite"
                        else postgres.new_database()
                    )
                    environment = {
                        **os.environ,
                        "TIDEMILL_CONFIG": str(folder / "tidemill.toml"),
                        "TIDEMILL_DATABASE_URL": url,
                        "TIDEMILL_REDIS_URL": valkey.new_database(),
                    }
                    if number == 0:
                        enqueued = ask("enqueue", arguments.documents, environment)
                    else:
                        with worker(environment):
                            ran = ask("run", arguments.jobs, environment)
                rate, peak = enqueued.split()
                print(
                    f"{database:<11} {float(rate):14,.0f} {float(peak):10,.0f} {float(ran):19,.0f}"
                )


RAW = argparse.RawDescriptionHelpFormatter


def ask(what: str, num_jobs: int, environment: dict[str, str]) -> str:
    """Run one of the measurements below in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.pipeline_producer", what, str(num_jobs)]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@contextmanager
def worker(environment: dict[str, str]) -> Iterator[None]:
    subprocess.run([sys.executable, "-m", "cli", "migrate"], env=environment, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-l", "WARNING"]
    with subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
