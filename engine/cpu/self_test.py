"""Self-test: compares a compiled part with plain torch at start; it is used only if they agree.

A part that does not compile here, raises, or gives other numbers is left out with a warning. Plain
torch does its work instead: the answers are the same, but slower.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from engine.logging import error_location

log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "TIDEMILL_CPU_KERNELS"
OFF = frozenset({"0", "false", "no", "off"})


def kernels_enabled(wanted: bool) -> bool:
    """Return whether compiled parts may be used.

    This is the model's setting, unless the environment variable switches them off for the process.
    """
    return wanted and os.environ.get(ENVIRONMENT_VARIABLE, "").strip().lower() not in OFF


def kernel_module(name: str) -> Any:
    """Return the module `engine.cpu.<name>`, or None where numba or torch's OpenMP is missing."""
    try:
        return importlib.import_module(f"engine.cpu.{name}")
    except (ImportError, AttributeError, OSError):
        return None


@torch.inference_mode()
def agrees(
    part: str,
    compiled: Callable[[], Iterable[Tensor]],
    plain: Callable[[], Iterable[Tensor]],
    tolerance: float = 1e-4,
) -> bool:
    """Return whether both give the same tensors; if not, log a warning.

    part:      the name of the compiled part, for the log
    compiled:  runs the part on inputs of its own choice
    plain:     runs torch on the same inputs
    tolerance: relative to 1, or to the largest number if that is more
    """
    try:
        with torch.random.fork_rng(devices=[]):
            pairs = zip(compiled(), plain(), strict=True)
            is_same = all(is_close(one, other, tolerance) for one, other in pairs)
    except Exception as error:
        log.warning("kernel failed", extra={"part": part, "error": error_location(error)})
        return False
    if not is_same:
        log.warning("kernel disagrees with torch", extra={"part": part})
    return is_same


def is_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether no number is off by more than the tolerance, relative to the largest number.

    A small sum whose terms cancel out has the rounding error of its large terms.
    """
    finite = other[other.isfinite()]
    largest = max(float(finite.abs().max()), 1.0) if finite.numel() else 1.0
    return torch.allclose(one, other, rtol=0.0, atol=tolerance * largest)
