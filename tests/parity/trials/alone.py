"""The reference: a checkpoint that runs one request at a time, as its users would.

It uses `transformers` only: a freshly loaded model and tokenizer, and prompts as in model cards.
"""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import transformers


class Alone:
    def __init__(self, kind: str, folder: Path, device: str = "cpu") -> None:
        self.kind = kind
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        self.is_encoder_decoder = config.is_encoder_decoder
        self.auto = transformers.AutoModelForCausalLM
        if self.is_encoder_decoder:
            self.auto = transformers.AutoModelForSeq2SeqLM
        elif type(config) in transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING:
            self.auto = transformers.AutoModelForMultimodalLM  # the whole model, for text alone
        self.folder, self.device = folder, device

    @cached_property
    def model(self) -> Any:
        return self.auto.from_pretrained(self.folder).eval().to(self.device)

    def afresh(self) -> Self:
        """A copy with an unused model, as it was when this one was loaded.

        The copied model must never run itself.
        """
        fresh = copy(self)
        fresh.__dict__["model"] = deepcopy(self.model)
        return fresh

    def generate(
        self, prompt: str | list[int], seed: int | None = None, **settings: Any
    ) -> list[list[int]]:
        """The new tokens of each returned sequence, including the first end token."""
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        input_ids = torch.tensor([ids], device=self.model.device)
        if seed is not None:
            torch.manual_seed(seed)
        with torch.inference_mode():  # a tenth quicker than generate's own no_grad
            rows = self.model.generate(
                input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **settings
            )
        num_before = 1 if self.is_encoder_decoder else len(ids)
        return [self.until_end(row) for row in rows[:, num_before:].tolist()]

    def translation(self, text: str, source: str, target: str) -> dict[str, Any]:
        """The arguments of `generate` for a checkpoint with language codes of its own."""
        self.tokenizer.src_lang = source
        token = f"__{target}__" if self.kind == "m2m100" else target
        return {
            "prompt": text,
            "forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(token),
        }

    def text(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True).replace("\0", "")

    def until_end(self, row: list[int]) -> list[int]:
        eos = self.model.generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos)
        end = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
        return row[:end]
