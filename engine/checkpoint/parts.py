"""Checkpoint parts: the configuration, tokenizer or model, each loaded by a library.

An error of the library becomes a sentence that names the part and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from engine.checkpoint.folder import place
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec


def files_of(spec: EngineSpec) -> Path:
    """The folder with the checkpoint's files: a local one, or the hub's snapshot."""
    folder = Path(place(spec))
    if folder.is_dir():
        return folder
    config = cached_file(spec.checkpoint, "config.json", revision=spec.revision)
    assert config is not None  # it was loaded a moment ago
    return Path(config).parent


def loaded(
    spec: EngineSpec, part: str, load: Callable[..., Any], arguments: Mapping[str, Any]
) -> Any:
    """Load one part of the checkpoint. Raises Unloadable with a sentence in place of any error."""
    try:
        return load(place(spec), **arguments)
    except Exception as error:
        raise Unloadable(why_not(spec, part, error)) from error


def why_not(spec: EngineSpec, part: str, error: Exception) -> str:
    name = f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r}"
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings code of its own; if you trust its author, "
            "set trust_remote_code = true for it in tidemill.toml"
        )
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not installed: {first_sentence(error)}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"{name} does not fit into memory; use a smaller dtype or another device"
    if Path(place(spec)).is_dir():
        return (
            f"the {part} of {name} cannot be read ({first_sentence(error)}); "
            "the folder should be what save_pretrained writes"
        )
    if part == "configuration" and isinstance(error, OSError):
        return (
            f"{name} is neither a folder here nor reachable on the Hugging Face hub "
            f"({first_sentence(error)}); check the name in tidemill.toml"
        )
    return f"the {part} of {name} cannot be loaded ({first_sentence(error)})"


def first_sentence(error: Exception) -> str:
    """The first sentence of a library's error message, which may be an essay."""
    text = " ".join(str(error).split()) or type(error).__name__
    head, _, _ = text.partition(". ")
    return head[:240].rstrip(".")
