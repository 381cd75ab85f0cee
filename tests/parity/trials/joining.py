"""Requests that join two by two while others run, with several settings in turn."""

from __future__ import annotations

from pathlib import Path

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.running.engines import Bench

SETTINGS = [
    {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False},
    {"max_new_tokens": 4, "do_sample": False},
    {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.4},
    {"max_new_tokens": 7, "do_sample": True, "seed": 5},
]


def spec_of(folder: Path, **settings) -> EngineSpec:
    return EngineSpec(**{"alias": "a", "checkpoint": str(folder), "device": "cpu", **settings})


def requests() -> list[Request]:
    return requests_for(checkpoints.sentences(15, seed=3))


def requests_for(texts: list[str]) -> list[Request]:
    return [
        Request(
            id=at, task="generate", text=text, params=SamplingParams(**SETTINGS[at % len(SETTINGS)])
        )
        for at, text in enumerate(texts)
    ]


def let_join(bench: Bench, waiting: list[Request]) -> dict:
    """They join two by two while others run."""
    while waiting:
        bench.submit(*waiting[:2])
        waiting = waiting[2:]
        bench.advance()
    return {each.request_id: each for each in bench.finish()}
