"""Grammars: JSON schemas as token masks, by llguidance.

A mask allows the tokens with which the answer can still become JSON that matches. Masks do not
cover every keyword of JSON schema, so the worker still validates the answer.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from engine.errors import SchemaTooComplex, UnsupportedParameter
from engine.text.detokenizer import special_ids
from engine.text.stop_strings import TokenTexts

try:
    import llguidance
except ImportError:
    llguidance = None

log = logging.getLogger(__name__)

COMPILE_SECONDS = 5.0  # of one schema, on a thread of its own
POLL_SECONDS = 0.02  # between two checks whether it is compiled
MAX_KEPT = 64  # compiled schemas
# No whitespace outside of strings: a model could generate it without end.
OPTIONS = {"whitespace_flexible": False, "lenient": True}
ANY_JSON: dict[str, Any] = {}
UNSATISFIABLE = "Unsatisfiable"
LIMITS = ("too complex", "limit", "too large", "too big", "fuel", "exceed")
TEXT_BYTES = (*range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF5))  # of UTF-8
SPECIAL = b"\xff"  # begins the name of a token that is no text


@dataclass(frozen=True, slots=True)
class Grammar:
    """The compiled schema of a request."""

    matcher: Any
    eos_token_ids: tuple[int, ...]
    token_texts: TokenTexts
    after: bytes | None = None  # the mark that ends a thought, before which all is allowed

    def fresh(self) -> Any:
        """A matcher at the start of an answer."""
        return self.matcher.deep_copy()

    def begins_after(self, tokens: tuple[int, ...]) -> bool:
        """Whether the last of these tokens completes the mark that ends the thought."""
        if self.after is None:
            return True
        # Each token is a byte at least.
        texts = (self.token_texts.of(each) or b"" for each in tokens[-len(self.after) :])
        return self.after in b"".join(texts)


class Grammars:
    """Compiles schemas for one checkpoint, and caches them."""

    def __init__(self, tokenizer: Any, token_texts: TokenTexts, num_ids: int, eos: Any) -> None:
        self.tokenizer = tokenizer
        self.token_texts = token_texts
        self.num_ids = num_ids
        self.eos_token_ids = tuple(sorted(eos))
        self._library_vocabulary: Any = None  # None: not made yet
        self._compiled: dict[str, Any] = {}

    def of(
        self, schema: Mapping[str, Any], after: str | None, between_looks: Callable[[], None]
    ) -> Grammar | None:
        """The grammar of a schema; None if masks cannot be built for this vocabulary.

        after:         the mark that ends the thought which the prompt begins; None: it begins none
        between_looks: called now and then while the schema is compiled
        raises:        SchemaTooComplex; UnsupportedParameter for a schema that nothing matches
        """
        if llguidance is None or not self.eos_token_ids or not self.vocabulary.is_complete:
            return None
        key = json.dumps(schema)
        if key not in self._compiled:
            self._keep(key, self._compile(key, between_looks))
        matcher = self._compiled[key]
        if matcher is None:
            return None
        mark = None if after is None else after.encode()
        return Grammar(matcher, self.eos_token_ids, self.token_texts, mark)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        special = {*special_ids(self.tokenizer), *self.eos_token_ids}
        # A token without text could be generated for ever.
        tokens = [
            SPECIAL + str(each).encode() if each in special or not text else text
            for each in range(self.num_ids)
            for text in (self.token_texts.of(each),)
        ]
        return Vocabulary(tokens, self.eos_token_ids[0])

    def _keep(self, key: str, matcher: Any) -> None:
        if len(self._compiled) >= MAX_KEPT:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[key] = matcher

    def _compile(self, schema: str, between_looks: Callable[[], None]) -> Any:
        matcher = self._in_time(schema, between_looks)
        error = matcher.get_error()
        if error and UNSATISFIABLE in error:
            raise UnsupportedParameter("json_schema", "nothing can match it; its parts contradict")
        if error and any(word in error.lower() for word in LIMITS):
            raise SchemaTooComplex
        if error:
            # A keyword that a mask cannot express, for example a pattern with look-ahead.
            matcher = self._in_time(json.dumps(ANY_JSON), between_looks)
        return matcher

    def _in_time(self, schema: str, between_looks: Callable[[], None]) -> Any:
        """Compile a schema on a thread that is abandoned after a timeout.

        The library limits its work, but not its time.
        """
        matchers: list[Any] = []
        finished = threading.Event()

        def compile_() -> None:
            try:
                if self._library_vocabulary is None:
                    self._library_vocabulary = llguidance.LLTokenizer(
                        llguidance.TokenizerWrapper(self.vocabulary),
                        n_vocab=self.num_ids,
                        eos_token=list(self.eos_token_ids),
                    )
                grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=OPTIONS)
                limits = llguidance.LLParserLimits(verbose_errors=False)
                matchers.append(
                    llguidance.LLMatcher(
                        self._library_vocabulary, grammar, log_level=0, limits=limits
                    )
                )
            except Exception as error:
                log.error("schema not compiled", extra={"error": type(error).__name__})
            finally:
                finished.set()

        threading.Thread(target=compile_, name="grammar", daemon=True).start()
        until = time.monotonic() + COMPILE_SECONDS
        while not finished.wait(POLL_SECONDS):
            between_looks()
            if time.monotonic() > until:
                raise SchemaTooComplex
        if not matchers:
            raise SchemaTooComplex
        return matchers[0]


class Vocabulary:
    """The bytes of each token, in the form that `llguidance.TokenizerWrapper` expects."""

    bos_token_id = None

    def __init__(self, tokens: list[Any], eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.special_token_ids = [at for at, each in enumerate(tokens) if each[:1] == SPECIAL]
        self.ids = {each: at for at, each in enumerate(tokens) if each[:1] != SPECIAL}
        self.longest = max(map(len, self.ids), default=1)
        # Else there are texts that it cannot write, and forced ones among them.
        self.is_complete = all(bytes([each]) in self.ids for each in TEXT_BYTES)

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokenize a text greedily, by the longest token."""
        left = text if isinstance(text, bytes) else text.encode()
        ids = []
        while left:
            lengths = range(min(self.longest, len(left)), 0, -1)
            length = next((each for each in lengths if left[:each] in self.ids), 0)
            if length:
                ids.append(self.ids[left[:length]])
            left = left[length or 1 :]
        return ids
