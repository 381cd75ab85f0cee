"""The checkpoint folder: where it is, and whether it can hold a checkpoint at all.

Nothing here imports a model library, which takes seconds, so a wrong path is refused at once.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json")


def place(spec: EngineSpec) -> str:
    """The path of a local folder, or a name on the hub."""
    folder = Path(spec.checkpoint).expanduser()
    return str(folder) if folder.is_dir() else spec.checkpoint


def refuse_missing_files(spec: EngineSpec) -> None:
    """Raise Unloadable for a path without a checkpoint, before the hub is asked for it.

    A folder without a tokenizer is refused too: `transformers` would make one without a vocabulary.
    """
    folder = Path(place(spec))
    name = f"the checkpoint {spec.checkpoint!r} of model {spec.alias!r}"
    if not folder.is_dir():
        if spec.checkpoint.startswith(("/", ".", "~")) or spec.checkpoint.count("/") > 1:
            raise Unloadable(f"{name} is not a folder here; check the path in tidemill.toml")
        return
    for part, patterns in (("config.json", ("config.json",)), ("a tokenizer", TOKENIZER_FILES)):
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            raise Unloadable(
                f"{name} is a folder without {part}; it should be what save_pretrained writes"
            )
