"""Tiny checkpoints of each family in Hugging Face format, with random weights.

Each tokenizer is of its family's kind, trained here on a small text. Weights are drawn large and
output embeddings apart from input embeddings, so that greedy answers vary from token to token and
from prompt to prompt: a model that repeats one token would agree with any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf

from tests.checkpoints import proved_at_load, proved_encoder_decoders
from tests.checkpoints.decoder_only import DECODER_ONLY, gpt2, with_heads_of_32
from tests.checkpoints.encoder_decoders import ENCODER_DECODERS, bart, m2m100, marian
from tests.checkpoints.multimodal import MULTIMODAL
from tests.checkpoints.one_by_one import UNPROVED, rwkv_rescaled
from tests.checkpoints.proved_encoder_decoders import AMPLE, CHANGED_BY_REQUESTS, LONG
from tests.checkpoints.rotary import SCALED, SWITCHED
from tests.checkpoints.saving import save
from tests.checkpoints.texts import WORDS, corpus, sentences

KINDS: dict[str, Callable[[Path], None]] = ENCODER_DECODERS | DECODER_ONLY
# Families that are not listed and are proved at load.
UNLISTED: dict[str, Callable[[Path], None]] = (
    proved_at_load.UNLISTED | proved_encoder_decoders.UNLISTED
)
EVERY = (
    KINDS
    | UNPROVED
    | UNLISTED
    | proved_at_load.STATES_OF_THEIR_OWN
    | CHANGED_BY_REQUESTS
    | AMPLE
    | LONG
    | SCALED
    | SWITCHED
    | MULTIMODAL
)
# For kinds whose usual seed gives a model that repeats itself or ignores its encoder.
SEEDS = {"marian": 5, "m2m100": 6, "pegasus": 0, "bigbird_pegasus": 2, "nllb_moe": 0, "t5gemma": 6}


def build(kind: str, folder: Path) -> Path:
    """Write the checkpoint of a kind of EVERY into the folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS.get(kind, 1))
        EVERY[kind](folder)
    return folder


__all__ = [
    "DECODER_ONLY", "ENCODER_DECODERS", "EVERY", "KINDS", "LONG", "MULTIMODAL", "UNLISTED",
    "UNPROVED", "WORDS", "bart", "build", "corpus", "gpt2", "hf", "m2m100", "marian",
    "rwkv_rescaled", "save", "sentences", "with_heads_of_32",
]  # fmt: skip
