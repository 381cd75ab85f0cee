"""Families whose requests may not share a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import transformers as hf

from tests.checkpoints.proved_encoder_decoders import nllb_moe
from tests.checkpoints.saving import POSITIONS, WIDTH, save
from tests.checkpoints.tokenizers import byte_level


def rwkv(folder: Path) -> None:
    vocab, merges = byte_level(["<|endoftext|>"])
    tokenizer = hf.GPT2Tokenizer(vocab=vocab, merges=merges)
    config = hf.RwkvConfig(
        vocab_size=len(tokenizer),
        context_length=POSITIONS,
        hidden_size=WIDTH,
        attention_hidden_size=WIDTH,
        num_hidden_layers=2,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save(folder, tokenizer, hf.RwkvForCausalLM(config))


def rwkv_rescaled(folder: Path) -> None:
    """RWKV that divides its weights at its first forward pass, once."""
    rwkv(folder)
    model = hf.RwkvForCausalLM.from_pretrained(folder)
    model.config.rescale_every = 1
    model.save_pretrained(folder)


# Families whose requests may not share a call.
UNPROVED: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (rwkv, rwkv_rescaled, nllb_moe)
}
