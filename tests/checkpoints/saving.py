"""Drawing weights and saving checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as hf

WIDTH = 32

POSITIONS = 256


def widen(model: Any, eos_token_ids: list[int]) -> None:
    """Draw weights with which attention and positions matter, and an end token that occurs now and
    then.

    With tied embeddings, or with layers that drown the token before, a random model repeats itself.
    """
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                is_cross = "encoder_attn.out_proj" in name or "EncDecAttention.o." in name
                gain = 1.0 if is_cross else 0.8
                weight.normal_(0, gain / math.sqrt(weight.shape[-1]))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Embedding):
                # T5's only position information is this bias.
                module.weight.normal_(0, 2.0 if "relative" in name else 1.0)
        head.weight.normal_(0, 1.0)
        head.weight[eos_token_ids] *= 1.6


def save(folder: Path, tokenizer: Any, model: Any) -> None:
    tokenizer.save_pretrained(folder)
    eos = model.generation_config.eos_token_id
    widen(model, eos if isinstance(eos, list) else [eos])
    model.save_pretrained(folder)


@contextlib.contextmanager
def borrowed(write: Callable[[Path], None], folder: Path) -> Iterator[tuple[Any, Any]]:
    """The tokenizer and the configuration of another family, whose checkpoint exists within this
    context."""
    source = folder / "source"
    source.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        write(source)
    yield hf.AutoTokenizer.from_pretrained(source), hf.AutoConfig.from_pretrained(source)
    shutil.rmtree(source)
