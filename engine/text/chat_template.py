"""ChatTemplate: messages as the text that a chat model was trained to read.

A template is a program of the checkpoint. It may want the content of a message as a text or as
a list of parts, and it may refuse messages in words of its own.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jinja2

from engine.errors import UnsupportedParameter

PROBE = "tidemill"
MAX_REASON_CHARACTERS = 500
REFUSED = "the chat template of the model refuses these roles in this order"


class ChatTemplate:
    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: one that has a chat template"""
        self.tokenizer = tokenizer

    def render(self, messages: list[tuple[str, str]], switches: Mapping[str, Any]) -> str:
        """The prompt, up to where the answer begins. Raises UnsupportedParameter.

        messages: (role, content); switches: variables of the template's own
        """
        try:
            # A copy, for a template may change what it is given.
            return self._apply(messages, self.content_is_list, **copy.deepcopy(dict(switches)))
        except Exception as error:
            words = self.words_of(error)
            if words is not None:
                reason = f"the chat template of the model says: {words}"
            else:
                reason = f"{REFUSED}, or its chat_template_kwargs" if switches else REFUSED
            raise UnsupportedParameter("messages", reason) from error

    @cached_property
    def content_is_list(self) -> bool:
        """Whether the content of a message has to be a list of parts to be seen."""
        return not self._shows(as_list=False) and self._shows(as_list=True)

    def words_of(self, error: Exception) -> str | None:
        """The words of a template's `raise_exception`, where they stand in the template itself;
        None else, for then they may quote a user."""
        if not isinstance(error, jinja2.TemplateError):
            return None
        words = str(error).strip()
        if not words or len(words) > MAX_REASON_CHARACTERS:
            return None
        return " ".join(words.split()) if words in self.constants else None

    @cached_property
    def constants(self) -> frozenset[str]:
        """The texts that stand in the template's source."""
        source = self.tokenizer.get_chat_template()
        return frozenset(
            _unquoted(value).strip()
            for _, kind, value in jinja2.Environment().lex(source)
            if kind == "string"
        )

    def _shows(self, as_list: bool) -> bool:
        try:
            return PROBE in self._apply([("user", PROBE)], as_list)
        except Exception:
            return False

    def _apply(self, messages: list[tuple[str, str]], as_list: bool, **switches: Any) -> str:
        turns = [
            {"role": role, "content": [{"type": "text", "text": content}] if as_list else content}
            for role, content in messages
        ]
        rendered: str = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False, **switches
        )
        return rendered


def _unquoted(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError):
        return literal[1:-1]
