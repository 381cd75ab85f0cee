"""Verdicts: the results of proofs, stored so that later starts are quick.

A verdict holds for the same weights, configuration, library versions, kind of device and dtype.
Anything else has another key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from engine.checkpoint.loader import Checkpoint
from engine.protocol.engine_spec import EngineSpec

log = logging.getLogger(__name__)

VERSION = 2  # of what a verdict says; 2: which way in flight
FIELDS = frozenset({"way", "how", "why_not", "why_alone", "pads_prompts", "pads_rows", "has_beams"})
ENVIRONMENT_VARIABLE = "TIDEMILL_CACHE"  # a folder; empty: keep nothing


def read(key: str | None) -> dict[str, Any] | None:
    folder = cache_folder()
    if key is None or folder is None:
        return None
    try:
        verdict = json.loads((folder / f"{key}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    # A truncated or foreign file counts as none.
    is_whole = isinstance(verdict, dict) and verdict.keys() >= FIELDS
    return verdict if is_whole else None


def write(key: str | None, verdict: dict[str, Any]) -> None:
    """Store a verdict if possible; a worker may have no writable folder."""
    folder = cache_folder()
    if key is None or folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another worker may write the same at the same time.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(verdict, file)
        os.replace(file.name, folder / f"{key}.json")
    except OSError as error:
        log.warning(
            "verdict not kept, so that the next start proves again",
            extra={"folder": str(folder), "reason": error.strerror},
        )


def cache_folder() -> Path | None:
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named is not None:
        return Path(named).expanduser() / "proofs" if named else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tidemill" / "proofs"


def key_of(spec: EngineSpec, checkpoint: Checkpoint) -> str | None:
    """The key of a verdict; None if the weights were not loaded from hashed files."""
    card, model = checkpoint.card, checkpoint.model
    if not card.weight_files:
        return None
    parts = {
        "version": VERSION,
        "weights": dict(card.weight_files),
        "config": checkpoint.config.to_dict(),
        "generation_config": dict(checkpoint.own),
        "dtype": card.dtype,
        "device": card.device.partition(":")[0],
        "quantization": spec.quantization,
        "cpu_kernels": [spec.cpu_kernels, os.environ.get("TIDEMILL_CPU_KERNELS")],
        "limits": [
            checkpoint.limits.max_prompt_tokens,
            checkpoint.limits.max_answer_context_tokens,
        ],
        "versions": {**card.versions, "python": sys.version},
        "engine": own_code(),
        "model_code": model_code(model),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def own_code() -> str:
    """A hash of the engine's own source: a verdict holds for this code only."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def model_code(model: Any) -> str:
    """A hash of the code that a checkpoint brings; transformers' code is covered by its version."""
    digest = hashlib.sha256()
    names = {type(each).__module__ for each in model.modules()}
    for name in sorted(names):
        if name.partition(".")[0] in ("torch", "transformers", "engine"):
            continue
        path = getattr(sys.modules.get(name), "__file__", None)
        digest.update(name.encode())
        if path is not None:
            with contextlib.suppress(OSError):
                digest.update(Path(path).read_bytes())
    return digest.hexdigest()
