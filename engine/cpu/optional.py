"""Compiling: what is compiled here, if anything can be. Every module that has some may miss."""

from __future__ import annotations

import importlib
from typing import Any


def compiled(name: str) -> Any:
    """The module of that name; None where numba, or torch's pool of threads, is missing."""
    try:
        return importlib.import_module(f"engine.cpu.{name}")
    except (ImportError, AttributeError, OSError):
        return None
