"""Masker: masks a job's texts, and restores the masked data in its answer."""

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, TypeAlias

from db.outcome import Answer
from tasks.configuration.masking import Masking
from worker.attempts.dialogue import Dialogue
from worker.documents.translation.placeholders import MASKED
from worker.masking.finders import Forms, finders_of
from worker.masking.match import Finder, matches_of

MAX_REPORTED = 100


@dataclass(frozen=True, slots=True)
class Masker:
    """Masks by finders in order; where matches overlap, the first wins."""

    finders: tuple[Finder, ...]

    @property
    def is_foreign(self) -> bool:
        """Whether any finder is an operator's own, whose running time is unknown."""
        return not all(isinstance(each, Forms) for each in self.finders)

    def num_characters(self, contract: Mapping[str, Any]) -> int:
        """The number of characters that are searched."""
        return sum(
            len(text)
            for name, value in contract.items()
            if name in SOURCE
            for text in _texts_of(value)
        )

    def masked(
        self, contract: Mapping[str, Any], earlier: Mapping[str, str] | None = None
    ) -> "MaskedWork":
        """A job's contract with placeholders.

        They follow from the contract alone, so another attempt makes the same placeholders, and
        stored segments of the first one fit. Equal values get the same placeholder.

        earlier: the placeholders of an earlier attempt and their values. If the rules have changed,
                 these stay, and new matches get other placeholders
        """
        earlier = earlier or {}
        work = MaskedWork(
            {},
            _Names([*_texts_of(contract), *earlier]),
            {(_kind_of(name), value): name for name, value in earlier.items()},
        )
        work.contract.update(
            {
                name: _changed(name, value, partial(self._mask, work, name in SOURCE))
                for name, value in contract.items()
            }
        )
        return work

    def _mask(self, work: "MaskedWork", is_source: bool, text: str) -> str:
        parts: list[str] = []
        at = 0
        for each in matches_of(self.finders, text):
            value = text[each.start : each.end]
            parts += [text[at : each.start], work.placeholder(each.kind, value)]
            at = each.end
        masked = "".join([*parts, text[at:]])
        if is_source:
            work.texts.append(masked)
        return masked


# Fields of a contract whose texts a model reads, at any depth.
SOURCE = (
    "text",
    "messages",
    "dialogue",
    "style",
    "focus",
    "glossary",
    "context",
    "tools",
    "system",
)
# Fields that instruct the model, whose text need not occur in the answer.
DEMANDS = ("chat_template_kwargs", "stop")
SCHEMA = "json_schema"
# The parts of a schema that a model sees or that may occur in its answer. The other parts must not
# change: a pattern with a placeholder would be another pattern.
SCHEMA_TEXTS = ("enum", "const", "default", "examples", "title", "description", "$comment")
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
# Fields of messages whose values belong to the protocol and not to the user.
KEPT_KEYS = ("role", "type")


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Dialogue):
        yield from (message.content for message in value.messages)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_of(each)


Change: TypeAlias = Callable[[str], str]


def _changed(name: str, value: Any, change: Change) -> Any:
    """Return a field of a contract, with `change` applied to the texts that a model sees."""
    if name == SCHEMA:
        return _changed_schema(value, change)
    if name in SOURCE or name in DEMANDS:
        return _mapped(value, change, KEPT_KEYS if name == "messages" else ())
    return value


def _changed_schema(value: Any, change: Change) -> Any:
    if isinstance(value, Mapping):
        return {key: _changed_part(key, each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_changed_schema(each, change) for each in value]
    return value


def _changed_part(key: str, value: Any, change: Change) -> Any:
    if key in SCHEMA_TEXTS:
        return _mapped(value, change)
    if key in SCHEMAS_BY_NAME and isinstance(value, Mapping):
        return {name: _changed_schema(each, change) for name, each in value.items()}
    return _changed_schema(value, change)


def _mapped(value: Any, change: Change, kept_keys: Container[str] = ()) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Dialogue):
        return value.mapped(change)
    if isinstance(value, Mapping):
        return {
            key: each if key in kept_keys else _mapped(each, change, kept_keys)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(each, change, kept_keys) for each in value]
    return value


def _kind_of(placeholder: str) -> str:
    return placeholder.strip("⟦⟧").rpartition("_")[0]


class _Names:
    """Makes placeholders that occur in none of the job's texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._in_text = {name for text in texts for name in MASKED.findall(text)}
        self._numbers: Counter[str] = Counter()

    def new(self, kind: str) -> str:
        while True:
            self._numbers[kind] += 1
            name = f"⟦{kind}_{self._numbers[kind]}⟧"
            if name not in self._in_text:
                return name


@dataclass(slots=True)
class MaskedWork:
    """A contract with placeholders, and the values behind them."""

    contract: dict[str, Any]
    names: _Names
    earlier: Mapping[tuple[str, str], str]  # placeholders by kind and value
    texts: list[str] = field(default_factory=list)  # as masked
    values: dict[str, str] = field(default_factory=dict)  # by placeholder
    placeholders: dict[tuple[str, str], str] = field(default_factory=dict)  # by kind and value

    def placeholder(self, kind: str, value: str) -> str:
        placeholder = self.placeholders.get((kind, value))
        if placeholder is None:
            placeholder = self.earlier.get((kind, value)) or self.names.new(kind)
            self.placeholders[kind, value] = placeholder
            self.values[placeholder] = value
        return placeholder

    def restored(self, answer: Answer) -> Answer:
        """Return the answer with its values restored, and a masking report in its provenance."""
        is_json = "json_schema" in self.contract or bool(self.contract.get("json_object"))
        if is_json:
            alternatives = tuple(map(_unescaped, answer.alternatives))
            answer = replace(answer, output=_unescaped(answer.output), alternatives=alternatives)
        seen = Counter(MASKED.findall("\n".join(self.texts)))
        said = Counter(MASKED.findall(answer.output))
        report = {
            "masked": dict(Counter(kind for kind, _ in self.placeholders)),
            "lost": _first(seen - said),
            "invented": _first(
                {name: num for name, num in (said - seen).items() if name not in self.values}
            ),
        }
        return replace(
            answer,
            output=self.put_back(answer.output, is_json=is_json),
            reasoning=None if answer.reasoning is None else self.put_back(answer.reasoning),
            alternatives=tuple(
                self.put_back(each, is_json=is_json) for each in answer.alternatives
            ),
            provenance={**answer.provenance, "masking": report},
        )

    def put_back(self, text: str, *, is_json: bool = False) -> str:
        """Replace the placeholders in a text by their values.

        is_json: whether the text is JSON, in whose strings values must be escaped
        """

        def value(match: re.Match[str]) -> str:
            original = self.values.get(match.group(), match.group())
            return json.dumps(original, ensure_ascii=False)[1:-1] if is_json else original

        # In one pass, so that a restored value is not searched for placeholders.
        return MASKED.sub(value, text)


# Placeholders as `json.dumps` escapes them, since models are trained on much JSON in ASCII.
ESCAPED = re.compile(
    r"(?<!\\)((?:\\\\)*)(?:\\u27e6|⟦)([A-Z][A-Z0-9]{0,30}_[0-9]{1,9})(?:\\u27e7|⟧)",
    re.ASCII | re.IGNORECASE,
)


def _unescaped(text: str) -> str:
    """Unescape the brackets of placeholders in JSON text."""
    return ESCAPED.sub(r"\1⟦\2⟧", text) if "\\u27" in text else text


def _first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items())[:MAX_REPORTED])


class Maskers:
    """The masker of each task and tenant that has rules."""

    def __init__(self, masking: Masking) -> None:
        """Raises SettingsError if a rule is invalid."""
        self._masking = masking
        self.masks = masking.masks  # whether any job may be masked
        for rules in (masking.for_all, *masking.by_task.values(), *masking.by_tenant.values()):
            finders_of(rules)
        self._made = cache(self._make)

    def masker_for(self, task: str, tenant: str) -> Masker | None:
        """The masker of a job; None if nothing of it is masked."""
        # The number of tenants is unbounded, but the configuration names few of them.
        return self._made(task, tenant if tenant in self._masking.by_tenant else "")

    def _make(self, task: str, tenant: str) -> Masker | None:
        rules = self._masking.rules_for(task, tenant)
        return Masker(finders_of(rules)) if rules else None
