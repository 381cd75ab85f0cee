"""Tokenizers of each kind, trained on the corpus."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import transformers as hf
from tokenizers import ByteLevelBPETokenizer

from tests.checkpoints.texts import corpus

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def pieces(vocab_size: int, **options: Any) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model of the corpus; unigram by default."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def scores(spm: sentencepiece.SentencePieceProcessor) -> list[tuple[str, float]]:
    return [(spm.id_to_piece(each), spm.get_score(each)) for each in range(spm.get_piece_size())]


def write_spm(spm: sentencepiece.SentencePieceProcessor, path: Path) -> str:
    path.write_bytes(spm.serialized_model_proto())
    return str(path)


def byte_level(special_tokens: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges of a byte-level BPE."""
    state = json.loads(byte_level_model(*special_tokens))["model"]
    return state["vocab"], [tuple(each) for each in state["merges"]]


@functools.cache
def byte_level_model(*special_tokens: str) -> str:
    """The byte-level BPE as JSON."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        corpus(), vocab_size=380, special_tokens=list(special_tokens), show_progress=False
    )
    return trainer.to_str()


def t5_tokenizer(model_max_length: int = 128) -> Any:
    spm = pieces(260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return hf.T5Tokenizer(
        vocab=[*scores(spm), *((f"<extra_id_{each}>", 0.0) for each in range(9, -1, -1))],
        extra_ids=10,
        model_max_length=model_max_length,
    )


def pegasus_tokenizer() -> Any:
    spm = pieces(260, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    before = ["<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{each}>" for each in range(2, 103))]
    vocab = [*((each, 0.0) for each in before), ("<unk>", 0.0), *scores(spm)[3:]]
    return hf.PegasusTokenizer(vocab=vocab)
