"""Stop strings: find where an answer contains a text at which it must end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from engine.core.sequence import Sequence
from engine.text.detokenizer import special_ids, text_of


def stop_position(text: str, stops: Iterable[str]) -> int | None:
    """The index of the first stop string in `text`; None if there is none."""
    positions = [position for stop in stops if (position := text.find(stop)) >= 0]
    return min(positions, default=None)


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """`text` up to its first stop string."""
    position = stop_position(text, stops)
    return text if position is None else text[:position]


class TokenTexts:
    """Finds stop strings in token ids as `generate` does: in the bytes of tokens, special ones too.

    The bytes of a token are computed at its first use and cached. Loop and writer use it.
    """

    def __init__(self, tokenizer: Any, goes_on_from_prompt: bool) -> None:
        """goes_on_from_prompt: a stop string may begin in the prompt (decoder-only models)"""
        self.tokenizer = tokenizer
        self.goes_on_from_prompt = goes_on_from_prompt
        self.decoder_types = decoder_types(tokenizer)
        # A model may write ids that its vocabulary does not list, such as M2M100's languages.
        self._known_ids = frozenset(tokenizer.get_vocab().values())
        self._special_ids = special_ids(tokenizer)
        self._texts: dict[int, bytes | None] = {}

    def has_stop_string(self, sequence: Sequence, new_ids: list[int]) -> bool:
        """Whether the last of the new tokens completes a stop string."""
        return bool(new_ids) and self._begin(sequence, new_ids) is not None

    def before_stop(
        self, sequence: Sequence, new_ids: list[int], num_thought: int = 0
    ) -> str | None:
        """The text before the stop string that the last of `new_ids` completes; None without one.

        num_thought: the number of leading `new_ids` that are a thought and left out of the text
        """
        begin = self._begin(sequence, new_ids) if new_ids else None
        if begin is None:
            return None
        at, num_bytes = begin
        if at < num_thought:
            return ""  # it began in the prompt, or before the answer
        text = text_of(self.tokenizer, new_ids[num_thought:at])
        if new_ids[at] not in self._special_ids:
            text += (self.of(new_ids[at]) or b"")[:num_bytes].decode("utf-8", "ignore")
        return text

    def of(self, token_id: int) -> bytes | None:
        """The bytes of a token; None if the vocabulary lacks the id."""
        if token_id not in self._texts:
            self._texts[token_id] = self._read(token_id)
        return self._texts[token_id]

    def _begin(self, sequence: Sequence, new_ids: list[int]) -> tuple[int, int] | None:
        """The start of the earliest stop string that the last token completes; None without one.

        Returns the index of a new token (negative in the prompt) and the number of its bytes before
        the start.
        """
        stops = [each.encode("utf-8", "replace") for each in sequence.settings.stop]
        # A token is taken for at least one byte, as `generate` does.
        num_tokens = max(map(len, stops), default=0)
        num_prompt = max(num_tokens - len(new_ids), 0) if self.goes_on_from_prompt else 0
        prompt = sequence.prompt_ids[-num_prompt:] if num_prompt else ()
        ids = [*prompt, *new_ids[-num_tokens:]] if num_tokens else []
        texts: list[bytes] = []
        for each in reversed(ids):
            text = self.of(each)
            if text is None:
                break
            texts.insert(0, text)
        if not texts:
            return None
        whole = b"".join(texts)
        before_last = len(whole) - len(texts[-1])
        begins = [
            begin
            for stop in stops
            if (begin := whole.find(stop, max(before_last - len(stop) + 1, 0))) >= 0
        ]
        if not begins:
            return None
        begin, at = min(begins), len(new_ids) - len(texts)
        for text in texts:
            if begin < len(text):
                break
            begin -= len(text)
            at += 1
        return at, begin

    def _read(self, token_id: int) -> bytes | None:
        if token_id not in self._known_ids:
            return None
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return None
        if "ByteFallback" in self.decoder_types:
            if BYTE_TOKEN.fullmatch(token):
                return bytes([int(token[3:5], 16)])
        elif "ByteLevel" in self.decoder_types and all(each in BYTE_OF for each in token):
            return bytes(BYTE_OF[each] for each in token)
        # The bytes of a token after others; alone, its leading space might be stripped.
        before = self.tokenizer.convert_ids_to_tokens(
            self.tokenizer(ANY_TEXT, add_special_tokens=False)["input_ids"]
        )
        text: str = self.tokenizer.convert_tokens_to_string([*before, token])
        _, found, added = text.partition(ANY_TEXT)
        if not found:  # a vocabulary without these letters
            added = self.tokenizer.decode([token_id])
        return added.encode("utf-8", "replace")


ANY_TEXT = "abcdef"
BYTE_TOKEN = re.compile(r"<0x[0-9a-fA-F]{2}>")


def bytes_by_character() -> dict[str, int]:
    """The byte of each character of a byte-level BPE vocabulary.

    Printable bytes stand for themselves, the others are characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [each for each in range(256) if each not in printable]
    return {chr(each): each for each in printable} | {
        chr(256 + at): each for at, each in enumerate(others)
    }


BYTE_OF = bytes_by_character()


def decoder_types(tokenizer: Any) -> frozenset[str]:
    """The types of a fast tokenizer's decoder steps; empty for a slow tokenizer."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if getattr(backend, "decoder", None) is None:
        return frozenset()
    state = json.loads(backend.to_str())["decoder"] or {}
    parts = state.get("decoders", []) if state.get("type") == "Sequence" else [state]
    return frozenset(each["type"] for each in parts)
