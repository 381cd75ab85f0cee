"""The sides: the ways to serve the requests, and how each is started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine.job import Job
from benchmarks.engine.models import SHAPES, Shape


class LeftOut(Exception):
    """A side cannot be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Side:
    about: str
    module: str  # run as a process: a Job in, Measured out
    how: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of the Job
    serves: Callable[[str], bool] = lambda model: True  # by the name of the model
    feeds: tuple[str, ...] = ("drain", "steady")
    devices: tuple[str, ...] = ("cpu", "cuda")
    beams: bool = True
    environment: str | None = None  # of `make bench-peers`; None: our own

    @property
    def python(self) -> str:
        if self.environment is None:
            return sys.executable
        return f"{self.environment}/bin/python"

    def why_not(self, model: str, job: Job) -> str | None:
        """Return the reason that a side cannot be measured; None if it can."""
        if self.environment is not None and not Path(self.python).exists():
            return f"there is no {self.environment}; run make bench-peers"
        if not self.serves(model):
            return "it does not serve this model"
        if job.feed not in self.feeds:
            return f"it cannot be fed otherwise than by {self.feeds[0]}"
        if job.device not in self.devices:
            return f"it does not run on {job.device}"
        if job.beams > 1 and not self.beams:
            return "it has no beams"
        return None

    def run(self, job: Job) -> dict[str, Any]:
        """Run a side and return its measurements.

        Raises LeftOut with the last lines of output of a side that failed.
        """
        done = subprocess.run(
            [self.python, "-m", f"benchmarks.engine.through.{self.module}"],
            input=job.to_json(),
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            last_words = done.stderr.strip().splitlines()[-3:] or ["without a word"]
            raise LeftOut(f"it ended with {done.returncode}: {' / '.join(last_words)[-400:]}")
        return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON has no types


def is_decoder_only(model: str) -> bool:
    return not shape_of(model).is_encoder_decoder


def is_llama(model: str) -> bool:
    return shape_of(model).family == "llama"


def is_converted(model: str) -> bool:
    return shape_of(model).family in ("t5", "marian")


def shape_of(model: str) -> Shape:
    return SHAPES[model]


PACKED = {"packed": True}
INT8 = {"quantization": "int8"}
BFLOAT16 = {"quantization": "bfloat16"}
BATCHES = ("drain",)  # a side that runs batches to completion is as fast with a steady feed
CPU = ("cpu",)

SIDES = {
    "one": Side("one at a time", "generate", "one", feeds=BATCHES),
    "one packed": Side(
        "one at a time, packed", "generate", "one", PACKED, feeds=BATCHES, devices=CPU
    ),
    "static": Side(
        "static batches in order of arrival", "generate", "static", feeds=BATCHES
    ),
    "static packed": Side(
        "static batches in order of arrival, packed",
        "generate",
        "static",
        PACKED,
        feeds=BATCHES,
        devices=CPU,
    ),
    "oracle": Side(
        "static batches sorted by true output length", "generate", "oracle", feeds=BATCHES
    ),
    "oracle packed": Side(
        "static batches sorted by true output length, packed",
        "generate",
        "oracle",
        PACKED,
        feeds=BATCHES,
        devices=CPU,
    ),
    "transformers": Side(
        "continuous batching of transformers", "manager", serves=is_decoder_only,
        beams=False,
    ),
    "transformers packed": Side(
        "continuous batching of transformers, packed",
        "manager",
        options=PACKED,
        serves=is_decoder_only,
        devices=CPU,
        beams=False,
    ),
    "vllm": Side(
        "vLLM", "vllm", "compiled", serves=is_llama, beams=False, devices=CPU,
        environment=".venv-vllm",
    ),
    "vllm eager": Side(
        "vLLM, eager", "vllm", "eager", serves=is_llama, beams=False, devices=CPU,
        environment=".venv-vllm",
    ),
    "ctranslate2": Side(
        "CTranslate2", "ctranslate2", serves=is_converted, feeds=BATCHES, devices=CPU,
        beams=False, environment=".venv-ctranslate2",
    ),
    "ctranslate2 int8": Side(
        "CTranslate2, int8", "ctranslate2", options=INT8, serves=is_converted,
        feeds=BATCHES, devices=CPU, beams=False, environment=".venv-ctranslate2",
    ),
    "exact": Side('Tidemill, engine = "exact"', "client", "exact"),
    "inflight": Side('Tidemill, engine = "inflight"', "client", "inflight"),
    "inflight int8": Side(
        'Tidemill, engine = "inflight", int8', "client", "inflight", INT8, devices=CPU
    ),
    "inflight bfloat16": Side(
        'Tidemill, engine = "inflight", bfloat16 weights', "client", "inflight", BFLOAT16,
        devices=CPU,
    ),
}  # fmt: skip
