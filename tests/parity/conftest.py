"""Checkpoints and engines, made once for the whole folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.backends.generate import GenerateBackend
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.proof import answered_alone, verdicts
from engine.protocol.engine_spec import EngineSpec
from engine.runners import captured_step
from tests import checkpoints
from tests.parity.trials.every_setting import AnsweredAlone, Asked, requests_of
from tests.running.engines import Bench


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint by its kind."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda kind: checkpoints.build(kind, root / kind))


@pytest.fixture(scope="session")
def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the run share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session")
def answered_alone_of(
    folder_of: Callable[[str], Path], of_the_run: Path
) -> Callable[[str], AnsweredAlone]:
    """The answers of `generate` for a kind, shared by all engines."""
    kept = of_the_run / "answered-alone"
    return cache(lambda kind: AnsweredAlone(kind, folder_of(kind), kept))


@pytest.fixture
def proved_once(of_the_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test of the run that loads a checkpoint proves it, and others reuse the verdict.

    For tests of an engine's answers after a proof, however it was reached.
    """
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(of_the_run / "verdicts"))


@pytest.fixture(scope="session")
def asked_of(answered_alone_of: Callable[[str], AnsweredAlone]) -> Callable[[str], Asked]:
    """Requests of a kind with the answers of `generate`."""

    def make(kind: str) -> Asked:
        answered = answered_alone_of(kind)
        return [(each, answered.answers(each, how)) for _, each, how in requests_of(kind)]

    return cache(make)


# Per module, since some modules test only one of the two.
@pytest.fixture(scope="module", params=["exact", "inflight"])
def engine_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bench_of(folder_of: Callable[[str], Path], engine_name: str) -> Callable[..., Bench]:
    """Makes a bench whose engine runs a model, by the kind of its checkpoint and settings of its
    spec."""

    def make(kind: str, **settings: Any) -> Bench:
        settings = {
            "alias": kind,
            "checkpoint": str(folder_of(kind)),
            "device": "cpu",
            "engine": "exact" if engine_name == "exact" else "inflight",
            **settings,
        }
        if engine_name == "paged":
            settings.setdefault("max_cache_tokens", 16_384)  # the cache is allocated at once
        spec = EngineSpec(**settings)
        if engine_name == "exact":
            return Bench(GenerateBackend.load(spec), spec)
        is_paged = engine_name == "paged"
        engine = RouterBackend(spec, Checkpoint.load(spec), poisoned=True, is_paged=is_paged)
        return Bench(engine, spec)

    return make


@pytest.fixture(scope="session", autouse=True)
def _record_early() -> Iterator[None]:
    """Runs here are short, so a step is recorded as soon as its number of rows occurs again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_step, "WORTH_AFTER", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _prove_in_full() -> Iterator[None]:
    """Proofs run all of their requests, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answered_alone, "MAX_SECONDS", 600.0)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are slower on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
