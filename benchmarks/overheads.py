"""Measure the cost of each optional feature on the whole path of a job.

    python -m benchmarks.overheads [--jobs 10000] [--rounds 3] [--database sqlite]
    python -m benchmarks.overheads --model 15m [--requests 128] [--rounds 3]

The path is that of `benchmarks.pipeline`, with the fake engine, which costs almost nothing, so that
every share is as large as possible; or with a model of random weights. In each round every feature
has a turn, in alternating order, between two turns of the bare path, and ratios are taken within a
round. Besides the jobs a second it prints the CPU time of the worker's own process for each job,
which other work on the machine affects less.

The bare path has no optional feature: no metrics, spans, masking, keys, or submits in the audit.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.engine.models import SHAPES
from benchmarks.pipeline import DATABASES, FAKE, NUM_WARM_UP, RAW, Road, ask, spread, worker
from db.encryption.key_ring import new_key
from tests.services.servers import free_port

SCRAPE_SECONDS = 5.0  # three times as often as a usual Prometheus
WORDS = "the tide turns and the wheel of the mill begins to move again while gulls cry " * 12
TEXT = f"{WORDS} write to ada@mail.example or pay DE89370400440532013000 {WORDS}"  # 2 kB
# As `opentelemetry-instrument` does it, with an exporter that takes spans and drops them.
SITE = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

class Nowhere(SpanExporter):
    def export(self, spans):
        return SpanExportResult.SUCCESS

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Nowhere()))
trace.set_tracer_provider(provider)
"""


@dataclass(frozen=True)
class Way:
    """The features that are switched on: tables of the configuration, and variables of producer and
    worker."""

    name: str
    worker: str = ""  # within [worker]
    tables: str = ""
    has_metrics: bool = False
    has_spans: bool = False
    has_keys: bool = False
    audits: bool = False


RULES = '[masking]\nrules = ["email", "url_secret", "ip", "card", "iban"]\n'
BARE = Way("bare")
WAYS = (
    Way("metrics", has_metrics=True),
    Way("traces", has_spans=True),
    Way("JSON logs", worker='log_format = "json"\n'),
    Way("masking", tables=RULES),
    Way("encryption", has_keys=True),
    Way("audit", audits=True),
    Way(
        "all of it", 'log_format = "json"\n', RULES,
        has_metrics=True, has_spans=True, has_keys=True, audits=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    jobs_per_second: float
    cpu_seconds: float  # of the worker's own process, for each job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs with the fake engine")
    parser.add_argument("--model", choices=("1m", "15m", "60m"), help="a model of this size")
    parser.add_argument("--requests", type=int, default=128, help="jobs with a model")
    parser.add_argument("--threads", type=int, default=2, help="threads of the engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--way", choices=[each.name for each in WAYS], action="append")
    arguments = parser.parse_args()
    ways = [each for each in WAYS if arguments.way is None or each.name in arguments.way]
    with Road.built() as road:
        requests, warm_up, model = prepared(road.folder, arguments)
        (road.folder / "sitecustomize.py").write_text(SITE)
        for database in arguments.database or DATABASES:
            rounds = []
            for number in range(arguments.rounds):
                turns = [BARE, *ways[:: -1 if number % 2 else 1], BARE]
                runs = [(way, run(road, database, model, way, requests, warm_up)) for way in turns]
                rounds.append(runs)
                speeds = ", ".join(f"{way.name} {ran.jobs_per_second:.1f}" for way, ran in runs)
                print(f"round {number + 1}: {speeds} jobs/s", file=sys.stderr, flush=True)
            show(database, rounds, ways)


def prepared(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, dict[str, object]]:
    """Return the files of the jobs and of the warm-up jobs, and the model's settings."""
    requests, warm_up = folder / "requests.jsonl", folder / "warm_up.jsonl"
    if arguments.model is None:
        line = json.dumps({"text": TEXT, "max_new_tokens": 8, "use_cache": False}) + "\n"
        requests.write_text(line * arguments.jobs)
        warm_up.write_text(line * (arguments.jobs // 4))
        return requests, warm_up, FAKE
    from benchmarks.pipeline_model import write_checkpoint, write_requests

    write_checkpoint(folder / "model", SHAPES[f"llama-{arguments.model}"])
    write_requests(requests, arguments.requests)
    write_requests(warm_up, NUM_WARM_UP)
    return requests, warm_up, {
        "checkpoint": str(folder / "model"),
        "engine": "inflight",
        "dtype": "float32",
        "threads": arguments.threads,
    }  # fmt: skip


def run(
    road: Road, database: str, model: dict[str, object], way: Way, requests: Path, warm_up: Path
) -> Run:
    """Run all jobs once, by a new worker on a new database."""
    road.configure(model)
    config = road.folder / "tidemill.toml"
    port = free_port()
    metrics = f"metrics_port = {port}\n" if way.has_metrics else ""
    audit = "" if way.audits else "[audit]\nsubmits = false\n"
    config.write_text(f"{config.read_text()}\n[worker]\n{metrics}{way.worker}\n{way.tables}{audit}")
    environment = road.environment(database)
    if way.has_keys:
        environment["TIDEMILL_KEYS"] = new_key("k1")
    if way.has_spans:
        environment["PYTHONPATH"] = f"{road.folder}:{os.environ.get('PYTHONPATH', '')}"
    num_jobs = sum(len(each.read_text().splitlines()) for each in (requests, warm_up))
    with worker(environment) as process, scraped(port if way.has_metrics else None):
        # Once before the CPU time is read, which leaves out the work of a worker's start.
        ask("answer", warm_up, environment, str(warm_up))
        times = psutil.Process(process.pid).cpu_times
        before = times()
        speed = float(ask("answer", requests, environment, str(warm_up)))
        after = times()
    used = after.user + after.system - before.user - before.system
    return Run(speed, used / num_jobs)


@contextmanager
def scraped(port: int | None) -> Iterator[None]:
    """Read the metrics every SCRAPE_SECONDS within this context. port: None reads nothing"""
    ended = threading.Event()

    def scrape() -> None:
        while port is not None and not ended.wait(SCRAPE_SECONDS):
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as of,
            ):
                of.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def show(database: str, rounds: list[list[tuple[Way, Run]]], ways: list[Way]) -> None:
    print(f"\n{database}, {len(rounds)} rounds; the bare path: ", end="")
    bare = [[ran for way, ran in runs if way is BARE] for runs in rounds]
    speeds = [each.jobs_per_second for own in bare for each in own]
    cpu = [1e6 * each.cpu_seconds for own in bare for each in own]
    print(f"{spread(speeds, ',.1f')} jobs/s, {spread(cpu, ',.0f')} µs of CPU in the worker a job")
    print("| switched on | jobs/s, of the bare path's | CPU of the worker, of the bare path's |")
    print("| --- | --- | --- |")
    # Two runs of the bare path within a round differ only by chance.
    pairs = [(own[-1], own[:1]) for own in bare]
    print(_row("nothing", pairs))
    for way in ways:
        print(_row(way.name, [
            (next(ran for each, ran in runs if each is way), own)
            for runs, own in zip(rounds, bare, strict=True)
        ]))  # fmt: skip
    sys.stdout.flush()


def _row(name: str, pairs: list[tuple[Run, list[Run]]]) -> str:
    speed = [ran.jobs_per_second / _mean(own, "jobs_per_second") for ran, own in pairs]
    cpu = [ran.cpu_seconds / _mean(own, "cpu_seconds") for ran, own in pairs]
    return f"| {name} | {spread(speed, '.3f')} | {spread(cpu, '.3f')} |"


def _mean(runs: list[Run], figure: str) -> float:
    return statistics.mean(getattr(each, figure) for each in runs)


if __name__ == "__main__":
    main()
