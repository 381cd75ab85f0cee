"""The tensors of a checkpoint's files by name, read when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

# As `transformers` looks for them.
NAMES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class TensorFiles(Mapping[str, Tensor]):
    def __init__(self, place: str, revision: str | None) -> None:
        """place: a folder, or a name on the hub. Raises FileNotFoundError."""
        self.sources: dict[str, Any] = {}  # by the tensor's name: what holds it
        for path in paths_of(place, revision):
            if path.suffix == ".safetensors":
                source: Any = safe_open(path, framework="pt")
                self.sources |= dict.fromkeys(source.keys(), source)
            else:
                held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
                self.sources |= dict.fromkeys(held, held)

    def __getitem__(self, name: str) -> Tensor:
        source = self.sources[name]
        tensor: Tensor = source[name] if isinstance(source, dict) else source.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def paths_of(place: str, revision: str | None) -> list[Path]:
    options = {
        "revision": revision,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    for whole, index in NAMES:
        if (path := cached_file(place, whole, **options)) is not None:
            return [Path(path)]
        if (path := cached_file(place, index, **options)) is not None:
            shards, _ = get_checkpoint_shard_files(place, path, revision=revision)
            return [Path(each) for each in shards]
    raise FileNotFoundError("it holds neither model.safetensors nor pytorch_model.bin")
