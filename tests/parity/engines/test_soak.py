"""Twenty thousand short requests, one after the other and many at once: memory stays flat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.running.engines import Child, child

NUM_REQUESTS, NUM_WARM, NUM_AT_ONCE = 10_000, 2_000, 250  # of each family
MAX_GROWTH_BYTES = 24 * 2**20  # of a process of some hundred; the allocator breathes


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_memory_stays_flat(kind: str, folder_of: Callable[[str], Path]) -> None:
    spec = EngineSpec(
        alias=kind, checkpoint=str(folder_of(kind)), engine="inflight", device="cpu", threads=1
    )
    words = checkpoints.sentences(50, seed=3)
    with child(spec) as engine:
        process = psutil.Process(engine.process.pid)
        serve(engine, words, range(NUM_WARM))
        before = process.memory_info().rss
        serve(engine, words, range(NUM_WARM, NUM_REQUESTS))
        grown = process.memory_info().rss - before
        assert (engine.progress.num_waiting, engine.progress.num_running) == (0, 0)
    assert grown < MAX_GROWTH_BYTES, f"{grown / 2**20:.1f} MiB more"


def serve(engine: Child, words: list[str], ids: range) -> None:
    """A group is sent when the one before is half answered, so that the queue never empties."""
    owed = 0
    for at in range(0, len(ids), NUM_AT_ONCE):
        group = ids[at : at + NUM_AT_ONCE]
        engine.send(*(request(each, words) for each in group))
        owed += len(group)
        while owed > NUM_AT_ONCE // 2:
            owed -= len(engine.receive_outputs())
    while owed:
        owed -= len(engine.receive_outputs())


def request(id_: int, words: list[str]) -> Request:
    text = " ".join(words[id_ % len(words)].split()[: 2 + id_ % 5])
    # One in twenty has beams, and one in twenty draws.
    how = (
        {"num_beams": 2} if id_ % 20 == 3 else {"num_return_sequences": 2} if id_ % 20 == 7 else {}
    )
    params = SamplingParams(
        max_new_tokens=1 + id_ % 4, do_sample="num_return_sequences" in how, seed=id_, **how
    )
    return Request(id=id_, task="generate", text=text, params=params)
