"""Measure the gain of prefix caching, and the delay of running rows by a long prompt.

    python -m benchmarks.prefixes [--model llama-60m] [--rounds 3] [--threads 1] [--clock cpu]

Three measurements, each in turns with and without:

- *shared*: requests whose prompts have the first 300 tokens in common, and then their own.
- *apart*: prompts of the same length without a common prefix, which caching must not slow down.
- *stalls*: rows that decode while a prompt of 4,000 tokens is read, in slices or at once; the time
  between two of their tokens, divided by the usual time.

The engine runs in this process, without the pipe. On a machine with other work the CPU time of one
thread is more precise than the clock.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.engine.models import SHAPES, text, write
from benchmarks.engine.workload import tokens
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.core.scheduler import Scheduler, StepLimits
from engine.core.sequence import Sequence
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams

NUM_SHARED = 300  # tokens
NUM_LONG = 4000
NUM_APART = 8  # requests, in turns
POSITIONS = 8192

Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-60m", choices=sorted(SHAPES))
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--own", type=int, default=64, help="own tokens of each prompt")
    parser.add_argument("--new", type=int, default=1, help="tokens of each answer")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--only", choices=("shared", "apart", "stalls"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write(place, replace(SHAPES[arguments.model], positions=POSITIONS))
        Comparison(arguments, place).run()


class Comparison:
    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments = arguments
        self.clock: Clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
        self.vocab_size = SHAPES[arguments.model].vocab_size
        # Both use one model, so that its place in memory is the same.
        spec = EngineSpec(
            alias="measured", checkpoint=str(folder), device="cpu",
            max_sequences=arguments.rows, threads=arguments.threads, max_cache_tokens=100_000,
        )  # fmt: skip
        self.engine = RouterBackend(spec, Checkpoint.load(spec))
        self.prefixes = self.engine.prefixes
        assert self.prefixes is not None
        self.draw = random.Random(309)
        self.num_requests = 0

    def run(self) -> None:
        shared = tokens(self.draw, NUM_SHARED, self.vocab_size)
        for name, ways in (("shared", (shared,)), ("apart", (None,))):
            if self.arguments.only in (None, name):
                self.compare(name, ways[0])
        if self.arguments.only in (None, "stalls"):
            self.stalls()

    def compare(self, name: str, shared: tuple[int, ...] | None) -> None:
        """Print how much faster prompts are read with prefix caching than without."""
        self.seconds([self.request(NUM_SHARED) for _ in range(8)], False)  # warm
        ratios = []
        for number in range(self.arguments.rounds):
            seconds = {True: 0.0, False: 0.0}
            # In turns as short as possible, because the machine's speed drifts.
            size = self.arguments.requests if shared else NUM_APART
            for turn in range(self.arguments.requests // size):
                prompts = [self.prompt(shared) for _ in range(size)]
                for is_on in (True, False) if (number + turn) % 2 else (False, True):
                    seconds[is_on] += self.seconds(prompts, is_on)
            num_tokens = self.arguments.requests * (NUM_SHARED + self.arguments.own)
            ratios.append(seconds[False] / seconds[True])
            print(
                f"{name}, round {number + 1}: {num_tokens / seconds[True]:.0f} prompt tokens/s "
                f"with, {num_tokens / seconds[False]:.0f} without",
                flush=True,
            )
        print(f"{name}: {of(ratios)} times as fast with prefix caching", flush=True)

    def prompt(self, shared: tuple[int, ...] | None) -> tuple[int, ...]:
        own = tokens(self.draw, self.arguments.own, self.vocab_size)
        return (shared or tokens(self.draw, NUM_SHARED, self.vocab_size)) + own

    def request(self, num_tokens: int) -> tuple[int, ...]:
        return tokens(self.draw, num_tokens, self.vocab_size)

    def seconds(self, prompts: list[tuple[int, ...]], is_on: bool) -> float:
        """Return the time to tokenize and answer the prompts. is_on: whether prefixes are cached"""
        assert self.prefixes is not None
        self.prefixes.make_room(0)
        self.prefixes.make_room(self.prefixes.max_blocks)
        self.prefixes.sightings.clear()
        self.engine.prefixes = self.prefixes if is_on else None
        scheduler = Scheduler(StepLimits.of(self.engine.sized.spec))
        started_at = self.clock()
        scheduler.add(self.sequence(each, self.arguments.new) for each in prompts)
        while (plan := scheduler.next_step()) is not None:
            scheduler.apply(plan, self.engine.run(plan))
        return self.clock() - started_at

    def sequence(self, prompt: tuple[int, ...], num_new: int) -> Sequence:
        self.num_requests += 1
        params = SamplingParams(max_new_tokens=num_new, do_sample=False)
        return self.engine.encode(
            Request(id=self.num_requests, task="generate", text=text(prompt), params=params)
        )

    def stalls(self) -> None:
        """Print the time between tokens beside a long prompt, divided by that without one."""
        self.engine.prefixes = None
        for in_slices in (False, True):
            longest, median, seconds = [], [], []
            for _ in range(self.arguments.rounds):
                usual, beside, total = self.times_between_tokens(in_slices)
                longest.append(max(beside) / usual)
                median.append(statistics.median(beside) / usual)
                seconds.append(total)
            print(
                f"stalls, {'in slices' if in_slices else 'at once'}: between two tokens "
                f"{of(median)} times the usual time, at most {of(longest)}; "
                f"the long prompt was read in {of(seconds)} s",
                flush=True,
            )

    def times_between_tokens(self, in_slices: bool) -> tuple[float, list[float], float]:
        """Return the usual time, the times beside the long prompt, and the time of reading it."""
        scheduler = Scheduler(StepLimits.of(self.engine.sized.spec))
        scheduler.add(self.sequence(self.request(64), 2000) for _ in range(self.arguments.rows - 1))
        # The scheduler learns from these, as in a worker: steps that decode, and prompts that join.
        times = [self.step(scheduler) for _ in range(60)]
        for _ in range(4):
            brief = self.sequence(self.request(64), 1)
            scheduler.add([brief])
            self.step(scheduler)
        before = statistics.median(times[-30:])
        long = self.sequence(self.request(NUM_LONG), 2)
        if not in_slices:
            long.num_read_tokens = None
        scheduler.add([long])
        beside = [self.step(scheduler)]
        while scheduler.reading:
            beside.append(self.step(scheduler))
        # The other rows have longer texts by now, and so longer steps.
        after = statistics.median(self.step(scheduler) for _ in range(33))
        usual = (before + after) / 2
        left = list(scheduler.running)
        self.engine.drop(scheduler.cancel(left))
        return usual, beside, sum(beside)

    def step(self, scheduler: Scheduler) -> float:
        plan = scheduler.next_step()
        assert plan is not None
        started_at = self.clock()
        results = self.engine.run(plan)
        seconds = self.clock() - started_at
        scheduler.apply(plan, results)
        scheduler.learn(plan, seconds)
        return seconds


def of(numbers: list[float]) -> str:
    """Return the median and the range in words."""
    low, high = min(numbers), max(numbers)
    return f"{statistics.median(numbers):.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
