"""ChatTemplate: renders messages as the prompt that a chat model was trained on.

A template is a program in the checkpoint. It may expect the content of a message as a string or as
a list of parts, may read the languages of a translation from such a part, and may refuse messages
with its own error text.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import jinja2
from jinja2 import nodes

from engine.errors import UnsupportedParameter
from engine.text.languages import is_language

PROBE, PROBE_ANSWER = "tidemill", "grinding"
ONE_QUESTION = [("user", PROBE)]
MAX_REASON_CHARACTERS = 500
LEAST_OWN_CHARACTERS = 8  # the shortest template text that may be quoted before a user's
PLACES = re.compile(r"%[sdr]|\{[^{}]*\}")
BROKEN = "the chat template of the model has an error of syntax"
HIDES_USERS = (
    "the chat template of the model leaves out what a user says; "
    "use a checkpoint with another, or the task generate"
)
OTHER_TEMPLATE = "use a checkpoint with another"
REFUSED = "the chat template of the model refuses these roles in this order"
# The fields of a part in which templates of translators look for languages.
LANGUAGE_FIELDS = ("source_lang_code", "target_lang_code")
PROBE_LANGUAGES = dict(zip(LANGUAGE_FIELDS, ("en", "fr"), strict=True))
LEAST_LANGUAGES = 2  # codes of a table of languages

# The content of a message: a text, a list of parts, or a list for users' messages only.
Form = Literal["text", "parts", "parts of users"]
FORMS: tuple[Form, ...] = ("text", "parts", "parts of users")


class ChatTemplate:
    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: has a chat template"""
        self.tokenizer = tokenizer

    def render(
        self,
        messages: list[tuple[str, str]],
        switches: Mapping[str, Any],
        languages: Mapping[str, str] | None = None,
        field: str = "messages",
    ) -> str:
        """Return the prompt, up to the start of the answer. Raises UnsupportedParameter.

        messages:  (role, content)
        switches:  variables of the template
        languages: by LANGUAGE_FIELDS, for a template that takes languages
        field:     the request's field to name in an error
        """
        if self.hides_users:
            raise UnsupportedParameter(field, HIDES_USERS)
        try:
            own = copy.deepcopy(dict(switches))  # a template may change what it is given
            if languages is None and self.takes_languages:
                languages = {each: own.pop(each) for each in LANGUAGE_FIELDS if each in own}
            return self._apply(messages, self.form, languages or {}, **own)
        except Exception as error:
            raise UnsupportedParameter(field, self._why_not(error, bool(switches))) from error

    def _why_not(self, error: Exception, is_switched: bool) -> str:
        words = self.words_of(error)
        if words is not None:
            return f"the chat template of the model says: {words}"
        if isinstance(error, jinja2.TemplateSyntaxError):
            return f"{BROKEN} in line {error.lineno}; {OTHER_TEMPLATE}"
        if not is_switched and not self.renders:
            return f"{REFUSED}, and any others ({type(error).__name__}); {OTHER_TEMPLATE}"
        return f"{REFUSED}, or its chat_template_kwargs" if is_switched else REFUSED

    @cached_property
    def content_is_list(self) -> bool:
        """Whether the template ignores content that is not a list of parts."""
        return self.form != "text"

    @cached_property
    def form(self) -> Form:
        """The first form of content that the template renders, in answers of earlier turns too."""
        two = [*ONE_QUESTION, ("assistant", PROBE_ANSWER), *ONE_QUESTION]
        shown = [form for form in FORMS if shows(self._probed(ONE_QUESTION, form), PROBE)]
        with_answers = (form for form in shown if shows(self._probed(two, form), PROBE_ANSWER))
        if not shown or shown[0] == "text":  # as in older templates
            return "text"
        return next(with_answers, shown[0])

    @cached_property
    def hides_users(self) -> bool:
        """Whether the template renders a prompt without the user's text in it."""
        if self._probed(ONE_QUESTION, "text") is None:
            return False
        return not any(shows(self._probed(ONE_QUESTION, form), PROBE) for form in FORMS)

    @cached_property
    def renders(self) -> bool:
        """Whether there are any messages that the template can render."""
        for messages in (ONE_QUESTION, [("system", PROBE), *ONE_QUESTION]):
            if any(self._probed(messages, form) is not None for form in FORMS):
                return True
        return False

    @cached_property
    def takes_languages(self) -> bool:
        """Whether the template reads languages from the content and writes the instruction."""
        return all(each in self.constants or each in self.names for each in LANGUAGE_FIELDS)

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """The codes in the template's own table of languages; empty if it has none."""
        try:
            tree = jinja2.Environment(
                extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]
            ).parse(self.source)
        except jinja2.TemplateError:
            return ()
        tables = [
            [pair.key.value for pair in table.items if isinstance(pair.key, nodes.Const)]
            for table in tree.find_all(nodes.Dict)
        ]
        codes = max(tables, key=len, default=[])
        if not all(isinstance(each, str) for each in codes):
            return ()
        num_languages = sum(map(is_language, codes))
        # A few that no standard knows may be among them.
        is_table = num_languages >= LEAST_LANGUAGES and num_languages > len(codes) / 2
        return tuple(codes) if is_table else ()

    def words_of(self, error: Exception) -> str | None:
        """The error text of `raise_exception`, as far as it stands in the template.

        Other text is left out, since it may quote a user; None if nothing is left.
        """
        if not isinstance(error, jinja2.TemplateError):
            return None
        words = " ".join(str(error).split())
        if not words:
            return None
        if words not in self.sentences:
            words = " ".join(self._own_parts(words))
        return words[:MAX_REASON_CHARACTERS] or None

    def _own_parts(self, words: str) -> Iterator[str]:
        """The parts of an error text that stand in the template, the others marked."""
        long = [each for each in self.sentences if len(each) >= LEAST_OWN_CHARACTERS]
        first = max((each for each in long if words.startswith(each)), key=len, default=None)
        if first is None:
            return
        rest = words
        while rest:
            own = max((each for each in long if rest.startswith(each)), key=len, default=None)
            if own is not None:
                yield own
                rest = rest[len(own) :].lstrip()
                continue
            places = [at for each in long if (at := rest.find(each)) >= 0]
            yield "…"
            rest = rest[min(places) :] if places else ""

    @cached_property
    def source(self) -> str:
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def constants(self) -> frozenset[str]:
        """The string constants in the template's source."""
        return frozenset(_unquoted(value).strip() for value in self._tokens("string"))

    @cached_property
    def sentences(self) -> frozenset[str]:
        """The constants with single spaces, whole and split at their format fields."""
        parts = (part for each in self.constants for part in (each, *PLACES.split(each)))
        return frozenset(" ".join(each.split()) for each in parts) - {""}

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self._tokens("name"))

    def _tokens(self, token_kind: str) -> list[str]:
        try:
            tokens = list(jinja2.Environment().lex(self.source))
        except (jinja2.TemplateError, ValueError):  # an unusable template, reported elsewhere
            return []
        return [value for _, kind, value in tokens if kind == token_kind]

    def _probed(self, messages: list[tuple[str, str]], form: Form) -> str | None:
        """The prompt for messages that no user sent; None where the template raises."""
        languages = {}
        if self.takes_languages:
            known = self.languages
            codes = (known[0], known[-1]) if known else tuple(PROBE_LANGUAGES.values())
            languages = dict(zip(LANGUAGE_FIELDS, codes, strict=True))
        try:
            return self._apply(messages, form, languages)
        except Exception:
            return None

    def _apply(
        self,
        messages: list[tuple[str, str]],
        form: Form,
        languages: Mapping[str, Any],
        **switches: Any,
    ) -> str:
        turns = []
        for role, text in messages:
            content: Any = text
            if form == "parts" or (form == "parts of users" and role == "user"):
                content = [{"type": "text", **languages, "text": text}]
            turns.append({"role": role, "content": content})
        rendered: str = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False, **switches
        )
        return rendered


def shows(prompt: str | None, words: str) -> bool:
    return prompt is not None and words in prompt.lower()


def _unquoted(literal: str) -> str:
    try:
        return str(ast.literal_eval(literal))
    except (SyntaxError, ValueError):
        return literal[1:-1]
