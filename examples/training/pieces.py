"""Makes sentencepiece models of the world's texts."""

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as schema

# Letters that the world never uses but users may type.
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-"
FOREIGN_LETTERS = "àâäçéèêëîïôöùûüñœøåæßÀÂÇÉÈÊÎÔŒ"
SAME_AS = {"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " ", "\n": " "}
FEWEST = 5  # occurrences; rarer words are spelled
SPACE = "▁"


def word_pieces(texts: Iterable[str]) -> list[str]:
    """Return every word and punctuation mark of the texts.

    The part before an apostrophe (`l'`, `qu'`) and the part after it are two words.
    """
    counts = Counter(piece for text in texts for word in text.split() for piece in _split(word))
    return sorted(piece for piece, count in counts.items() if count >= FEWEST)


def _split(word: str) -> Iterable[str]:
    rest = SPACE + word
    while len(rest) > 2 and rest[-1] in ".,!?":
        yield rest[-1]
        rest = rest[:-1]
    owner, apostrophe, last = rest.rpartition("'")
    if last.lower() == "s" and apostrophe:
        yield "'" + last
        rest = owner
    elided = re.fullmatch(r"(▁(?:[a-z]|qu)')(.*)", rest, flags=re.IGNORECASE)
    yield from elided.groups() if elided else (rest,)


def piece_model(words: Iterable[str]) -> sentencepiece.SentencePieceProcessor:
    """Return a unigram model in which each of the words is one piece.

    Any other word is spelled, so a name is read and written letter by letter.
    """
    model = schema.ModelProto()
    model.ParseFromString(_readable_model())
    special = [piece for piece in model.pieces if piece.type != 1]
    del model.pieces[:]
    model.pieces.extend(special)
    letters = [SPACE, *LETTERS, *FOREIGN_LETTERS]
    scores = dict.fromkeys(letters, -10.0) | {word: -1.0 for word in words if len(word) > 1}
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _readable_model() -> bytes:
    """Return a serialized model that normalizes typographic marks to typed ones."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{ord(a):x}\t{ord(b):x}\n" for a, b in SAME_AS.items()))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(LETTERS)] * 3),
            model_writer=model,
            vocab_size=1000,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_tsv=str(rules),
            num_threads=1,
            minloglevel=2,
        )
    return model.getvalue()
