"""Sentencepiece models of the world's text."""

import io
from collections.abc import Iterable

import sentencepiece

# Letters that the world never uses but a visitor may type.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-"


def learn_pieces(
    texts: Iterable[str], vocab_size: int, **options: int
) -> sentencepiece.SentencePieceProcessor:
    """A unigram model. `vocab_size` is an upper bound: a small world has few words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *[" ".join(LETTERS)] * 3]),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,  # more of them count in another order
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
