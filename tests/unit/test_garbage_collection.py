"""A start makes no garbage and does not look for it; afterwards it is looked for as ever."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.process import no_garbage_collection
from tests.running.workers import ROOT
from worker.celery.run_jobs import freeze_gc


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.enable()
    gc.set_threshold(*thresholds)


def run_python(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.splitlines()


def test_a_worker_starts_without_garbage_collection_and_enables_it_when_ready() -> None:
    program = (
        "import gc, sys\n"
        "from cli.stack import celery_main\n"
        "celery_main.celery.main = lambda **_: print(gc.isenabled(), *sys.modules)\n"
        "celery_main.main()\n"
    )
    is_enabled, *modules = run_python(program)[0].split()
    assert is_enabled == "False"
    assert "celery.bin.worker" in modules
    assert not {"celery.bin.celery", "click_repl", "flower"} & set(modules)
    gc.disable()
    freeze_gc()
    assert gc.isenabled()
    # More than the objects of the jobs that one claim brings.
    assert gc.get_threshold()[0] == 20_000


def test_garbage_collection_is_enabled_again_after_a_failed_import() -> None:
    seen = []

    def fail() -> None:
        with no_garbage_collection():
            seen.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert (seen, gc.isenabled()) == ([False], True)


def test_a_command_collects_garbage_rarely_and_restores_the_thresholds() -> None:
    program = (
        "import gc\n"
        "from cli import main\n"
        "main._run = lambda _: print(gc.get_threshold()[0])\n"
        "before = gc.get_threshold()\n"
        "main.main([])\n"
        "print(gc.isenabled(), gc.get_threshold() == before)\n"
    )
    assert run_python(program) == ["100000", "True True"]
