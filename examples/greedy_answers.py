"""Computes greedy answers of the demo's checkpoints by plain transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

ROWS = 50  # generated together
Answers = Callable[[list[str]], list[str]]


def generator(folder: Path) -> Answers:
    """Return a function that answers prompts; the answer of a decoder-only model has no prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    is_causal = not config.is_encoder_decoder
    kind: Any = (
        transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForSeq2SeqLM
    )
    model = kind.from_pretrained(folder, dtype=torch.float32)
    tokenizer.padding_side = "left" if is_causal else "right"

    def answers(prompts: list[str]) -> list[str]:
        texts = []
        for start in range(0, len(prompts), ROWS):
            rows = tokenizer(prompts[start : start + ROWS], padding=True, return_tensors="pt")
            output = model.generate(**rows)
            if is_causal:
                output = output[:, rows["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(output, skip_special_tokens=True)
        return texts

    return answers
