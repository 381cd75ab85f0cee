"""Convert one of our checkpoints to the format of CTranslate2.

    python -m benchmarks.engine.through.convert_for_ctranslate2 FOLDER TARGET none|int8

CTranslate2's converter reads the family's special tokens from the tokenizer. Ours has none: they
are words like all others. So the converter's loader gets a stand-in that names them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers as hf
from ctranslate2.converters import transformers as converters

UNKNOWN = 3  # occurs in no prompt


class ConverterTokenizer:
    """A stand-in for the tokenizer, with only the attributes that the converter reads."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.pad_token = self.convert_ids_to_tokens(config.pad_token_id)
        self.eos_token = self.convert_ids_to_tokens(config.eos_token_id)
        self.bos_token = self.convert_ids_to_tokens(getattr(config, "bos_token_id", None) or 1)
        self.unk_token = self.convert_ids_to_tokens(UNKNOWN)

    def get_vocab(self) -> dict[str, int]:
        words = {self.convert_ids_to_tokens(each): each for each in range(self.config.vocab_size)}
        if self.config.model_type == "marian":
            # The converter drops a last word `<pad>`, since its Marian decoder starts from zeros.
            del words[self.pad_token]
            words["<pad>"] = self.config.pad_token_id
        return words

    def convert_ids_to_tokens(self, id_: int) -> str:
        return f"t{id_}"


class Converter(converters.TransformersConverter):
    def _load(self) -> Any:
        model = hf.AutoModelForSeq2SeqLM.from_pretrained(self._model_name_or_path)
        loader = converters._MODEL_LOADERS[type(model.config).__name__]
        with torch.no_grad():
            return loader(model.eval(), ConverterTokenizer(model.config))


def main(folder: str, target: str, quantization: str) -> None:
    Converter(folder).convert(target, quantization=None if quantization == "none" else quantization)


if __name__ == "__main__":
    main(*sys.argv[1:])
