"""Requests with every setting, and the answers of `generate` to each alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any

from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.runners.captured_step import CapturedExecutor
from engine.runners.step_executor import FusedEncoderDecoder, FusedExecutor
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.running.engines import Bench

NUM_PROMPTS = 6

# The settings for each prompt. `i` is the number of the prompt, so that lengths and seeds differ
# within a call.
SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "greedy": lambda i: {"max_new_tokens": 8 + 5 * i},
    # The prompt counts, and some have more than a hundred tokens.
    "max_length": lambda i: {"max_length": (145, 145, 60, 60, 145, 100)[i]},
    "beams": lambda i: {"max_new_tokens": 14, "num_beams": 4},
    "beams, several returned": lambda i: {
        "max_new_tokens": 10 + i % 2,
        "num_beams": 3,
        "num_return_sequences": 2,
        "length_penalty": 2.0,
        "early_stopping": True,
    },
    "repetition penalty": lambda i: {"max_new_tokens": 20, "repetition_penalty": 1.4},
    "no repeated n-gram": lambda i: {"max_new_tokens": 20, "no_repeat_ngram_size": 2},
    "minimum length": lambda i: {"max_new_tokens": 24, "min_new_tokens": 14 + i},
    "beams with everything": lambda i: {
        "max_new_tokens": 16,
        "min_new_tokens": 6,
        "num_beams": 2,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    },
    "sampling": lambda i: {"max_new_tokens": 10 + i, "do_sample": True, "seed": i},
    "sampling, warped": lambda i: {
        "max_new_tokens": 12,
        "do_sample": True,
        "seed": 40 + i,
        "temperature": 0.7,
        "top_k": 30,
        "top_p": 0.9,
        "num_return_sequences": 1 + i % 3,
        "repetition_penalty": 1.1,
    },
    "beam sampling": lambda i: {
        "max_new_tokens": 8,
        "do_sample": True,
        "seed": 7,
        "num_beams": 2,
    },
}  # fmt: skip

CODES = {"m2m100": ("en", "fr"), "nllb": ("eng_Latn", "fra_Latn"), "mbart": ("en_XX", "fr_XX")}

TASK = {
    **dict.fromkeys(checkpoints.DECODER_ONLY, "generate"),
    **dict.fromkeys(("t5", "mt5", "bart", "pegasus"), "summarize"),
    **dict.fromkeys(("marian", "marian_multi", "m2m100", "nllb", "mbart"), "translate"),
}


# Requests, each with its answers.
Asked = list[tuple[Request, list[list[int]]]]


def requests_of(kind: str) -> list[tuple[str, Request, dict[str, Any]]]:
    """Every setting for every prompt, in an order that mixes them."""
    asked = [
        (name, text, {"do_sample": False, **of_prompt(i)})
        for name, of_prompt in SETTINGS.items()
        for i, text in enumerate(checkpoints.sentences(NUM_PROMPTS, seed=3))
    ]
    random.Random(5).shuffle(asked)
    languages = {}
    if TASK[kind] == "translate":
        languages = {"source_language": "en", "target_language": "fr"}
    return [
        (
            name,
            Request(id=at, task=TASK[kind], text=text, params=SamplingParams(**how), **languages),
            how,
        )
        for at, (name, text, how) in enumerate(asked)
    ]


def alone_of(alone: Alone, request: Request, how: dict[str, Any]) -> list[list[int]]:
    text = request.text or ""
    if alone.kind == "t5":
        return alone.generate(f"summarize: {text}", **how)
    if alone.kind == "marian_multi":
        return alone.generate(f">>fra<< {text}", **how)
    if alone.kind in CODES:
        return alone.generate(**alone.translation(text, *CODES[alone.kind]), **how)
    return alone.generate(text, **how)


class AnsweredAlone:
    """The answers of one checkpoint to the requests of `requests_of`.

    Each is computed once in a run of the tests, by the first process that needs it.
    """

    def __init__(self, kind: str, folder: Path, kept: Path) -> None:
        """kept: a folder that the processes of this run share"""
        self.alone = Alone(kind, folder)
        files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
        digest = sha256(b"".join(each.read_bytes() for each in files)).hexdigest()
        self.kept = kept / f"{kind}-{digest}"
        self.kept.mkdir(parents=True, exist_ok=True)

    def answers(self, request: Request, how: dict[str, Any]) -> list[list[int]]:
        with (self.kept / f"{request.id}.json").open("a+") as file:
            flock(file, LOCK_EX)  # another process may be computing it
            file.seek(0)
            known = file.read()
            answers: list[list[int]] = json.loads(known or "null")
            if not known:
                answers = alone_of(self.alone, request, how)
                json.dump(answers, file)
        return answers


def assert_captured_or_fused(bench: Bench) -> None:
    """Check that steps were captured and replayed to the end, or are fused, which needs no
    capture."""
    executor = bench.loop.engine.in_flight.runner.executor
    if isinstance(executor, FusedEncoderDecoder):
        if executor.fused_step is not None:
            return
        executor = executor.otherwise
    if isinstance(executor, FusedExecutor):
        return
    assert isinstance(executor, CapturedExecutor)
    assert executor.graphs.record is not None
    assert executor.graphs.recorded


def assert_varied(said: list[list[int]]) -> None:
    """Fail if references repeat one token or one another: any answer would agree with these."""
    assert all(said)
    tokens = [token for each in said for token in each]
    assert len(set(tokens)) >= 30
    assert sum(len(set(each)) / len(each) for each in said) / len(said) > 0.4
    assert len({tuple(each) for each in said}) > len(said) / 3
