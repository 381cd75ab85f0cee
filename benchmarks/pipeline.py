"""Measure the cost of the queue: the enqueue rate, and jobs/s through Redis, worker and database.

    python -m benchmarks.pipeline [--jobs 20000] [--documents 50000]
    python -m benchmarks.pipeline --model 15m [--requests 256] [--rounds 5]
    python -m benchmarks.pipeline --features [--jobs 5000 | --model 15m]

Without a model the engine is the fake one, which costs almost nothing, so that only the path of a
job is measured: contract, insert, publish, receive, claim, pipe, commit, ack. With a model of
random weights and a real tokenizer, the whole path is compared with the engine alone, which gets
the same requests by its pipe, in turns.

`--features` measures the cost of the content cache and the guards for jobs without a cached answer:
the CPU time of the worker's process and of its engine, which other work on the machine affects
little.

It runs on SQLite and on PostgreSQL, each started by the script, with a Valkey and a Celery worker
in processes of their own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.engine.models import SHAPES
from tests.services.servers import PostgresServer, ValkeyServer

FAKE = {"checkpoint": "fake", "engine": "fake", "max_sequences": 256}
DATABASES = ("sqlite", "postgresql")
NUM_WARM_UP = 16
FEATURES = {
    "neither": "[cache]\nenabled = false\n[guards]\nenabled = false\n",
    "the cache": "[guards]\nenabled = false\n",
    "the guards": "[cache]\nenabled = false\n",
    "both": "",
}


@dataclass(frozen=True, slots=True)
class Road:
    """The servers, and a folder for all files."""

    folder: Path
    valkey: ValkeyServer
    postgres: PostgresServer

    @classmethod
    @contextmanager
    def built(cls) -> Iterator["Road"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)  # PostgreSQL does not run as root
            for part in ("valkey", "postgres", "model"):
                (folder / part).mkdir()
            with (
                ValkeyServer.started(folder / "valkey") as valkey,
                PostgresServer.started(folder / "postgres") as postgres,
            ):
                yield cls(folder, valkey, postgres)

    def configure(self, model: dict[str, object], tables: str = "") -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in model.items()]
        text = "\n".join(["[models.measured]", 'tasks = ["generate"]', *lines, tables])
        (self.folder / "tidemill.toml").write_text(text)

    def environment(self, database: str) -> dict[str, str]:
        """Return the variables of producer and worker, with an empty Redis and database."""
        if database == "sqlite":
            number = len(list(self.folder.glob("*.db")))
            (self.folder / f"{number}.db").touch()
            url = f"sqlite:///{self.folder}/{number}.db"
        else:
            url = self.postgres.new_database()
        return {
            **os.environ,
            "TIDEMILL_CONFIG": str(self.folder / "tidemill.toml"),
            "TIDEMILL_DATABASE_URL": url,
            "TIDEMILL_REDIS_URL": self.valkey.new_database(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of the whole path")
    parser.add_argument("--documents", type=int, default=50_000, help="1 kB texts to enqueue")
    parser.add_argument("--features", action="store_true", help="measure cache and guards")
    parser.add_argument("--model", choices=("1m", "15m", "60m"), help="a model of this size")
    parser.add_argument("--engine", default="inflight", help="engine of the model")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with Road.built() as road:
        if arguments.features:
            what_features_cost(road, arguments)
        elif arguments.model is None:
            the_road_itself(road, arguments)
        else:
            against_the_engine_alone(road, arguments)


def the_road_itself(road: Road, arguments: argparse.Namespace) -> None:
    road.configure(FAKE)
    print("database    enqueue docs/s   peak MiB   whole road jobs/s")
    for database in DATABASES:
        enqueued = ask("enqueue", arguments.documents, road.environment(database))
        environment = road.environment(database)
        with worker(environment):
            ran = ask("run", arguments.jobs, environment)
        rate, peak = enqueued.split()
        print(f"{database:<11} {float(rate):14,.0f} {float(peak):10,.0f} {float(ran):19,.0f}")


def what_features_cost(road: Road, arguments: argparse.Namespace) -> None:
    model, num_jobs = FAKE, arguments.jobs
    requests, warm_up = road.folder / "requests.jsonl", road.folder / "warm_up.jsonl"
    if arguments.model is not None:
        model, num_jobs = written_model(road.folder, arguments), arguments.requests
    print(f"{'database':11} {'with':11} {'CPU, ms a job: worker':>22} {'engine':>8} {'jobs/s':>8}")
    for database in DATABASES:
        for name, tables in FEATURES.items():
            road.configure(model, tables)
            environment = road.environment(database)
            with worker(environment) as process:
                ask("run", NUM_WARM_UP, environment)
                before = cpu_seconds(process)
                if arguments.model is None:
                    ran = ask("run", num_jobs, environment)
                else:
                    ran = ask("answer", requests, environment, str(warm_up))
                after = cpu_seconds(process)
            own, engine = (1000 * (b - a) / num_jobs for a, b in zip(before, after, strict=True))
            print(
                f"{database:11} {name:11} {own:22.3f} {engine:8.1f} {float(ran):8,.1f}", flush=True
            )


def cpu_seconds(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Return the CPU time of a worker's own process, and of its engine's."""
    parent = psutil.Process(process.pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    own, *engine = (each.user + each.system for each in times)
    return own, sum(engine)


def written_model(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Write a model of random weights, its requests and the warm-up requests; returns the model's
    settings."""
    from benchmarks.pipeline_model import write_checkpoint, write_requests

    write_checkpoint(folder / "model", SHAPES[f"llama-{arguments.model}"])
    write_requests(folder / "requests.jsonl", arguments.requests)
    write_requests(folder / "warm_up.jsonl", NUM_WARM_UP)
    return {
        "checkpoint": str(folder / "model"),
        "engine": arguments.engine,
        "dtype": "float32",
        "threads": arguments.threads,
    }


def against_the_engine_alone(road: Road, arguments: argparse.Namespace) -> None:
    name, folder = f"llama-{arguments.model}", road.folder
    model = written_model(folder, arguments)
    requests, warm_up = folder / "requests.jsonl", folder / "warm_up.jsonl"
    road.configure(model)
    spec = json.dumps({"alias": "measured", **model})
    speeds: dict[str, list[float]] = {"engine alone": []} | {each: [] for each in DATABASES}
    for number in range(arguments.rounds):
        alone = python("benchmarks.pipeline_engine", spec, str(requests), str(warm_up))
        speeds["engine alone"].append(float(alone))
        for database in DATABASES:
            environment = road.environment(database)
            with worker(environment):
                ran = ask("answer", requests, environment, str(warm_up))
            speeds[database].append(float(ran))
        shown = ", ".join(f"{name} {each[-1]:.2f}" for name, each in speeds.items())
        print(f"round {number + 1}: {shown} requests/s", file=sys.stderr, flush=True)
    print(f"{name}, {arguments.requests} requests, {arguments.rounds} rounds")
    print(f"{'':14} {'requests/s':>20} {'of the engine alone':>22}")
    for side, own in speeds.items():
        shares = [each / alone for each, alone in zip(own, speeds["engine alone"], strict=True)]
        print(f"{side:14} {spread(own, '.2f'):>20} {spread(shares, '.3f'):>22}")


def spread(numbers: list[float], how: str) -> str:
    return f"{statistics.median(numbers):{how}} ({min(numbers):{how}}-{max(numbers):{how}})"


def ask(what: str, argument: object, environment: dict[str, str], *more: str) -> str:
    """Run one of the producer's measurements."""
    return python(
        "benchmarks.pipeline_producer", what, str(argument), *more, environment=environment
    )


def python(module: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run a program in a process of its own and return its output."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@contextmanager
def worker(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
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
            yield process
        finally:
            process.terminate()


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
