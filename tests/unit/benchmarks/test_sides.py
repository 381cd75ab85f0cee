"""Every side of the engine's benchmark is a module that can be run."""

from importlib.util import find_spec

import pytest

from benchmarks.engine.__main__ import MACHINE
from benchmarks.engine.sides import SIDES, Side


@pytest.mark.parametrize("side", [MACHINE, *SIDES.values()], ids=lambda side: side.about)
def test_a_side_is_a_module_in_its_folder(side: Side) -> None:
    assert find_spec(f"benchmarks.engine.through.{side.module}") is not None
