"""What batching in flight gives: one model, the same requests, served in several ways.

    python -m benchmarks.engine [--models llama-15m,t5-small] [--requests 64] [--rounds 5]

Each side runs in a process of its own, for two OpenMP runtimes in one spin against each
other, and the sides take turns, so that what else the machine does meets them alike. The
table shows useful tokens per second, the median of the rounds with their range, and the
ratio to one request at a time. On a machine that others use, `--clock cpu --threads 1`
counts tokens per second of processor time instead. `packed` are weights laid out for oneDNN,
which has nothing to do with batching: a reader sees what each gives.
"""

import argparse
import json
import statistics
import subprocess
import sys

from benchmarks.engine_side import MODELS

SIDES = {
    "one": "one at a time, as people do it",
    "one packed": "one at a time, packed",
    "static": "batches of 16 in order of arrival",
    "static packed": "batches of 16 in order of arrival, packed",
    "oracle": "batches of 16 sorted by output length",
    "oracle packed": "batches of 16 sorted by output length, packed",
    "exact": 'engine = "exact", 16 rows',
    "inflight plain": 'engine = "inflight", 16 rows, not packed',
    "inflight": 'engine = "inflight", 16 rows',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--models", default=",".join(MODELS), help="by name, with commas")
    parser.add_argument("--sides", default=",".join(SIDES), help="by name, with commas")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--every", type=int, default=4, help="of which one at a time runs one")
    arguments = parser.parse_args()
    for model in arguments.models.split(","):
        compare(model, arguments)


def compare(model: str, arguments: argparse.Namespace) -> None:
    sides = arguments.sides.split(",")
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    answers: dict[str, list[list[int]]] = {}
    for _ in range(arguments.rounds):
        for side in sides:
            found = measure(model, side, arguments)
            speeds[side].append(found[arguments.clock])
            answers[side] = found["answers"]
    print(f"\n{model}: {arguments.requests} requests, {arguments.rounds} rounds")
    print(f"{'':48} {'tokens/s':>8} {'range':>15} {'ratio':>6} {'identical':>10}")
    base = statistics.median(speeds[sides[0]])
    for side in sides:
        median, least, most = statistics.median(speeds[side]), min(speeds[side]), max(speeds[side])
        print(
            f"{SIDES[side]:48} {median:8.0f} {least:7.0f} -{most:6.0f} {median / base:5.1f}x "
            f"{agreement(answers, side, arguments.every):>10}",
            flush=True,
        )


def measure(model: str, side: str, arguments: argparse.Namespace) -> dict:
    numbers = (arguments.requests, arguments.threads, arguments.every)
    command = [sys.executable, "-m", "benchmarks.engine_side", model, side, *map(str, numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def agreement(answers: dict[str, list[list[int]]], side: str, every: int) -> str:
    """How many answers are those of one at a time, of those that it ran."""
    if "one" not in answers:
        return "-"
    alone, others = answers["one"], answers[side]
    if not side.startswith("one"):
        others = others[::every]
    same = sum(a == b for a, b in zip(alone, others, strict=True))
    return f"{same}/{len(alone)}"


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
