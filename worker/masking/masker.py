"""Masks a job's texts, and puts back into its answer what was taken out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from db.outcome import Answer
from tasks.configuration.masking import Masking
from worker.attempts.dialogue import Dialogue
from worker.documents.placeholders import MASKED, Span, blanked, missed
from worker.masking.finders import Finder, Match, checked, finders_of

MAX_REPORTED = 100


@dataclass(frozen=True, slots=True)
class Masker:
    """Finds in order; where two finds overlap, the first has it."""

    finders: tuple[Finder, ...]

    def masked(self, contract: Mapping[str, Any]) -> "MaskedWork":
        """A job's contract with placeholders.

        What is taken out follows from the contract alone: so another attempt makes the same
        placeholders, and what was kept of the first fits. One thing is one placeholder,
        however often it stands there.
        """
        work = MaskedWork({}, _Names(set(_texts_of(contract))))
        work.contract.update(
            {
                name: _mapped(value, lambda text: self._mask(text, work))
                if name in TEXTS
                else value
                for name, value in contract.items()
            }
        )
        return work

    def _mask(self, text: str, work: "MaskedWork") -> str:
        matches: list[Match] = []
        for finder in self.finders:
            spans = [Span(each.start, each.end) for each in matches]
            free = blanked(text, spans) if spans else text
            candidates = sorted(checked(finder.find(free), len(text)))
            at = 0
            for each in candidates:
                if each.start >= at and "\x00" not in free[each.start : each.end]:
                    matches.append(each)
                    at = each.end
            matches.sort()
        parts: list[str] = []
        at = 0
        for each in matches:
            value = text[each.start : each.end]
            parts += [text[at : each.start], work.placeholder(each.kind, value)]
            at = each.end
        masked = "".join([*parts, text[at:]])
        work.texts.append(masked)
        return masked


# Fields of a contract that a model reads, in whatever they are nested.
TEXTS = ("text", "messages", "dialogue", "style", "focus", "glossary", "context", "tools", "system")
# Within messages: words of the protocol, which are none of the user's.
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


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Dialogue):
        return value.mapped(change)
    if isinstance(value, Mapping):
        return {
            key: each if key in KEPT_KEYS else _mapped(each, change) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_mapped(each, change) for each in value]
    return value


class _Names:
    """Placeholders that stand in none of the job's texts by themselves."""

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
    """A contract with placeholders, and what they stand for."""

    contract: dict[str, Any]
    names: _Names
    texts: list[str] = field(default_factory=list)  # as masked
    values: dict[str, str] = field(default_factory=dict)  # by placeholder
    placeholders: dict[tuple[str, str], str] = field(default_factory=dict)  # by kind and value

    def placeholder(self, kind: str, value: str) -> str:
        placeholder = self.placeholders.get((kind, value))
        if placeholder is None:
            placeholder = self.placeholders[kind, value] = self.names.new(kind)
            self.values[placeholder] = value
        return placeholder

    def restored(self, answer: Answer) -> Answer:
        """The answer for the user, and in its provenance what became of the placeholders."""
        masked_text = "\n".join(self.texts)
        spans = [Span(*match.span()) for match in MASKED.finditer(masked_text)]
        differences = missed(masked_text, spans, answer.output)
        masks = {name: num for name, num in differences.items() if MASKED.fullmatch(name)}
        report = {
            "masked": dict(Counter(kind for kind, _ in self.placeholders)),
            "lost": _first({name: num for name, num in masks.items() if num > 0}),
            "invented": _first(
                {name: -num for name, num in masks.items() if num < 0 and name not in self.values}
            ),
        }
        return replace(
            answer,
            output=self.put_back(answer.output),
            reasoning=None if answer.reasoning is None else self.put_back(answer.reasoning),
            alternatives=tuple(map(self.put_back, answer.alternatives)),
            provenance={**answer.provenance, "masking": report},
        )

    def put_back(self, text: str) -> str:
        """The text with what its placeholders stand for."""
        # At one stroke: what a placeholder stands for is no place for another.
        return MASKED.sub(lambda match: self.values.get(match.group(), match.group()), text)


def _first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items())[:MAX_REPORTED])


class Maskers:
    """A masker for each task and tenant that has rules."""

    def __init__(self, masking: Masking) -> None:
        """Raises SettingsError where a rule cannot be followed."""
        self._masking = masking
        for rules in (masking.for_all, *masking.by_task.values(), *masking.by_tenant.values()):
            finders_of(rules)
        self._made = cache(self._make)

    def masker_for(self, task: str, tenant: str) -> Masker | None:
        """The masker of such a job; None: nothing of it is masked."""
        # Of tenants there is no end; of those that the configuration names there is.
        return self._made(task, tenant if tenant in self._masking.by_tenant else "")

    def _make(self, task: str, tenant: str) -> Masker | None:
        rules = self._masking.rules_for(task, tenant)
        return Masker(finders_of(rules)) if rules else None
