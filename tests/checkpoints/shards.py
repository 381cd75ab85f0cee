"""The weights of a checkpoint in several files, as a large one is saved."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def as_shards(folder: Path, weights: dict[str, torch.Tensor], as_bin: bool) -> list[str]:
    """Save weights as two files and their index; returns the names of the files."""
    (folder / "model.safetensors").unlink()
    stem, end = ("pytorch_model", "bin") if as_bin else ("model", "safetensors")
    names = sorted(weights)
    parts = {f"{stem}-0000{at + 1}-of-00002.{end}": names[at::2] for at in range(2)}
    for file, held in parts.items():
        tensors = {name: weights[name] for name in held}
        if as_bin:
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    return list(parts)
