"""Compare the speed of the engine with other libraries: every side serves the same requests.

    python -m benchmarks.engine [--models llama-15m,t5-small] [--rounds 5] [--json FILE]

A side is one way to serve the requests. Each side runs in a process of its own, because two OpenMP
runtimes in one process spin against each other. Within a round the sides take turns, so that other
work on the machine affects all of them. Tokens per second count only requested tokens. `packed`
means weights packed by oneDNN, which is independent of batching: so the gains of both can be told
apart. The side `one` (one request at a time) serves only some requests, of all classes of length,
since all of them would take hours.

With --json the measurements are appended to a file; `python -m benchmarks.engine.table FILE...`
makes the table again, from several runs. With --folder the checkpoints, and the answers of `one`,
are kept for the next run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from benchmarks.engine.agreement import Agreement, agreement
from benchmarks.engine.cost import cost_of, kv_bytes
from benchmarks.engine.job import Job
from benchmarks.engine.models import SHAPES
from benchmarks.engine.record import Record, append
from benchmarks.engine.sides import SIDES, LeftOut, Side
from benchmarks.engine.table import NO_ROWS, tables
from benchmarks.engine.workload import drawn

MORE_BYTES = 500 * 10**6  # allowed in addition to weights, keys and values
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}
MACHINE = Side("the machine at its best", "machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--models", default=",".join(SHAPES), help="names, with commas")
    parser.add_argument("--sides", default=",".join(SIDES), help="names, with commas")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default="16", help="numbers of rows, with commas")
    parser.add_argument("--feed", choices=("drain", "steady"), default="drain")
    parser.add_argument("--waiting", type=int, default=32, help="waiting requests, if steady")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(BYTES_PER_WEIGHT), default="float32")
    parser.add_argument(
        "--quantization",
        choices=("none", "int8", "bfloat16"),
        default="none",
        help="rounding of our engine's weights",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--alone", type=int, default=16, help="requests of the side `one`")
    parser.add_argument("--batches", type=int, help="number of static batches; default: all")
    parser.add_argument("--json", type=Path, help="append the measurements here")
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        print(tables(Comparison(arguments, folder).records()))


class Comparison:
    """One run of the benchmark's command."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.folder = folder
        self.id = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {uuid.uuid4().hex[:6]}"
        self.left_out: set[tuple[str, str]] = set()

    def records(self) -> list[Record]:
        records = []
        for model in self.arguments.models.split(","):
            # In a process of its own, since this one loads no torch.
            command = [sys.executable, "-m", "benchmarks.engine.models", str(self.folder), model]
            subprocess.run(command, check=True)
            for number in range(self.arguments.rounds):
                records += self.round(model, number)
        return records

    def round(self, model: str, number: int) -> list[Record]:
        """Measure every side once."""
        peaks = MACHINE.run(self.job(model, MACHINE, 1))["versions"]
        records = []
        for wanted in map(int, self.arguments.rows.split(",")):
            for name in self.sides():
                rows = NO_ROWS if SIDES[name].how == "one" else wanted
                if any((each.side, each.rows) == (name, rows) for each in records):
                    continue  # `one` runs once for all numbers of rows
                try:
                    measured = self.measure(model, name, rows)
                except LeftOut as error:
                    self.leave_out(model, name, error)
                    continue
                record = self.record(model, name, rows, number, measured, peaks, wanted)
                records.append(record)
                say(f"{model} {name}, {rows} rows, round {number + 1}: {record.speed:.1f} tokens/s")
                if self.arguments.json is not None:
                    append(self.arguments.json, record)
        return records

    def sides(self) -> list[str]:
        names: list[str] = self.arguments.sides.split(",")
        rounded = self.arguments.quantization
        if rounded != "none":
            names = [f"inflight {rounded}" if each == "inflight" else each for each in names]
        return list(dict.fromkeys(names))

    def measure(self, model: str, name: str, rows: int) -> dict[str, Any]:
        """Measure one side. Raises LeftOut."""
        side = SIDES[name]
        job = self.job(model, side, rows)
        reason = side.why_not(model, job)
        if reason is not None:
            raise LeftOut(reason)
        return side.run(job)

    def job(self, model: str, side: Side, rows: int) -> Job:
        arguments = self.arguments
        # Static batches run one after the other, so a steady feed makes no difference to them.
        feed = side.feeds[0] if arguments.feed not in side.feeds else arguments.feed
        return Job(
            folder=str((self.folder / model).resolve()),
            how=side.how,
            requests=drawn(arguments.requests, SHAPES[model].vocab_size),
            rows=rows,
            threads=arguments.threads,
            device=arguments.device,
            dtype=arguments.dtype,
            beams=arguments.beams,
            feed=feed,
            num_waiting=arguments.waiting,
            num_alone=arguments.alone,
            num_batches=arguments.batches,
            **side.options,
        )

    def record(
        self,
        model: str,
        name: str,
        rows: int,
        number: int,
        measured: dict[str, Any],
        peaks: dict[str, str],
        rows_of_limit: int,
    ) -> Record:
        arguments = self.arguments
        shape, requests = SHAPES[model], drawn(arguments.requests, SHAPES[model].vocab_size)
        size = BYTES_PER_WEIGHT[arguments.dtype]
        cost = cost_of(shape, requests, rows_of_limit, arguments.beams, size)
        limit = cost.limit(float(peaks["flops"]), float(peaks["bytes_per_second"]))
        kv = kv_bytes(shape, requests, rows, arguments.beams, size)
        sizes = json.loads((self.folder / model / "sizes.json").read_text())
        agreeing = self.agreement(model, name, measured["answers"])
        clock = "seconds" if arguments.clock == "wall" else "cpu_seconds"
        return Record(
            run=self.id,
            round=number,
            model=model,
            side=name,
            rows=rows,
            feed=arguments.feed,
            beams=arguments.beams,
            dtype=arguments.dtype,
            device=arguments.device,
            threads=arguments.threads,
            clock=arguments.clock,
            speed=measured["num_tokens"] / measured[clock],
            seconds=measured["seconds"],
            num_tokens=measured["num_tokens"],
            num_requests=min(measured["num_requests"], len(requests)),
            num_drawn=len(requests),
            first_seconds=measured["first_seconds"],
            occupancy=measured["occupancy"],
            num_compared=agreeing.num_compared,
            num_identical=agreeing.num_identical,
            tokens_agreeing=agreeing.tokens_agreeing,
            peak_rss_bytes=measured["peak_rss_bytes"],
            allowed_bytes=sizes["num_parameters"] * size + kv + MORE_BYTES,
            limit=limit if arguments.clock == "wall" else None,
            versions=measured["versions"],
        )

    def agreement(self, model: str, name: str, answers: dict[str, list[int]]) -> Agreement:
        """Compare the answers with those of `one` for the same weights, or of an earlier run."""
        arguments = self.arguments
        setting = f"{arguments.dtype}-{arguments.device}-{arguments.beams}-{arguments.requests}"
        place = self.folder / model / f"alone-{setting}.json"
        if name == "one":
            place.write_text(json.dumps(answers))
        alone = json.loads(place.read_text()) if place.exists() else {}
        return agreement(alone, answers)

    def leave_out(self, model: str, name: str, error: LeftOut) -> None:
        if (model, name) not in self.left_out:
            self.left_out.add((model, name))
            say(f"{model} {name} is left out: {error}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
