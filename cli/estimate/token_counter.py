"""TokenCounter: counts tokens with the model's own tokenizer, without a model library."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.configuration.catalog import Model

USUAL_CHARACTERS_PER_TOKEN = 4.0
MAX_COUNTED_CHARACTERS = 4_000_000  # of one model; the rest by what these come to
PIECE_CHARACTERS = (
    100_000  # a tokenizer takes ten times as long for a text ten times as long, or more
)

Count = Callable[[str], int]


class TokenCounter:
    """Counts the tokens of one model's texts; `method` says how.

    Neither torch nor transformers is loaded: `tokenizers` or `sentencepiece` read the tokenizer's
    file, if they are installed and the checkpoint is on this machine.
    """

    def __init__(self, model: Model, measured_characters_per_token: float | None) -> None:
        self._count = _tokenizer(model)
        self._measured = measured_characters_per_token
        self._num_characters = 0
        self._num_counted_characters = 0
        self._num_counted_tokens = 0

    def add(self, text: str) -> int:
        """Add a text; returns its number of tokens, exact or approximate."""
        self._num_characters += len(text)
        if self._count is not None and self._num_counted_characters < MAX_COUNTED_CHARACTERS:
            num_tokens = 0
            for start in range(0, len(text), PIECE_CHARACTERS):
                num_tokens += self._count(text[start : start + PIECE_CHARACTERS])
            self._num_counted_characters += len(text)
            self._num_counted_tokens += num_tokens
            return num_tokens
        return round(len(text) / self.characters_per_token)

    @property
    def characters_per_token(self) -> float:
        if self._num_counted_tokens:
            return self._num_counted_characters / self._num_counted_tokens
        return self._measured or USUAL_CHARACTERS_PER_TOKEN

    @property
    def method(self) -> str:
        """The method in words: `counted by the model's tokenizer`."""
        if self._count is not None and self._num_counted_characters == self._num_characters:
            return "counted by the model's tokenizer"
        if self._count is not None:
            share = self._num_counted_characters / max(self._num_characters, 1)
            return f"by the model's tokenizer, from {share:.0%} of the text"
        if self._measured is not None:
            return f"at {self._measured:.1f} characters a token, as in recent results"
        return f"at {USUAL_CHARACTERS_PER_TOKEN:.0f} characters a token, as is usual"


def _tokenizer(model: Model) -> Count | None:
    for name, load in (
        ("tokenizer.json", _tokenizers),
        ("source.spm", _sentencepiece),
        ("spiece.model", _sentencepiece),
        ("sentencepiece.bpe.model", _sentencepiece),
    ):
        path = _file_of(model, name)
        if path is not None:
            # Whatever is wrong with it, an estimate can be made without.
            with suppress(Exception):
                return load(path)
    return None


def _file_of(model: Model, name: str) -> Path | None:
    """A file of the checkpoint on this machine; an estimate downloads nothing."""
    folder = Path(model.checkpoint)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    with suppress(Exception):  # not installed, or no name of a repository
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model.checkpoint, name, revision=model.revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def _tokenizers(path: Path) -> Count:
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text).ids)


def _sentencepiece(path: Path) -> Count:
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor(model_file=str(path))
    return lambda text: len(processor.encode(text))
