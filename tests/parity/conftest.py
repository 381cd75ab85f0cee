"""Checkpoints and engines, made once for the whole folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import checkpoints
from tests.engines import Bench
from worker.engine.exact import ExactEngine
from worker.engine.spec import EngineSpec


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint by its kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda kind: checkpoints.build(kind, root / kind))


@pytest.fixture(scope="session")
def bench_of(folder_of: Callable[[str], Path]) -> Callable[..., Bench]:
    """A bench with the exact engine, by the kind of its checkpoint and settings of its spec."""

    def make(kind: str, **settings: Any) -> Bench:
        folder = str(folder_of(kind))
        spec = EngineSpec(alias=kind, checkpoint=folder, device="cpu", **settings)
        return Bench(ExactEngine.load(spec), spec)

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models lose time on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
