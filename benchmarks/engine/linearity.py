"""Check that the cost grows only linearly: compare requests/s of 10,000 requests and of 500.

    python -m benchmarks.engine.linearity [--rounds 5]

Short requests to the smallest model, where the engine's overhead is the largest share.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.engine.job import Job
from benchmarks.engine.models import SHAPES
from benchmarks.engine.sides import SIDES
from benchmarks.engine.workload import short

MODEL = "llama-1m"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=("inflight", "exact"), default="inflight")
    arguments = parser.parse_args()
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.engine.models", folder, MODEL]
        subprocess.run(command, check=True)
        for number in range(arguments.rounds):
            few = requests_per_second(Path(folder), arguments.few, arguments)
            many = requests_per_second(Path(folder), arguments.many, arguments)
            shares.append(many / few)
            print(
                f"round {number + 1}: {few:.1f} requests/s of {arguments.few}, "
                f"{many:.1f} of {arguments.many}",
                file=sys.stderr,
                flush=True,
            )
    print(
        f"{arguments.many} requests ran at {statistics.median(shares):.3f} "
        f"({min(shares):.3f}-{max(shares):.3f}) of the speed of {arguments.few}; "
        f"{MODEL}, {arguments.rows} rows, n = {len(shares)} rounds"
    )


def requests_per_second(folder: Path, num_requests: int, arguments: argparse.Namespace) -> float:
    side = SIDES[arguments.side]
    job = Job(
        folder=str(folder / MODEL),
        how=side.how,
        requests=short(num_requests, SHAPES[MODEL].vocab_size),
        rows=arguments.rows,
        threads=arguments.threads,
    )
    measured = side.run(job)
    return float(measured["num_requests"] / measured["seconds"])


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
