"""Draft: the intermediate translation of one sentence."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from engine.protocol.output import Output
from worker.documents.translation.glossary import Term, missed_terms
from worker.documents.translation.placeholders import Span, missed
from worker.documents.translation.translatable import fragments


def is_empty(output: Output) -> bool:
    return not output.choices[0].text.strip()


@dataclass(slots=True, eq=False)
class Draft:
    """A text between source and translation: one request, or several for its fragments."""

    text: str
    max_characters: int  # of the parts, if it is too long
    spans: tuple[Span, ...] = ()
    terms: tuple[Term, ...] = ()
    restored: Mapping[str, str] = field(default_factory=dict)  # the placeholders and their values
    output: Output | None = None
    parts: "list[Draft | str] | None" = None
    between: str | None = None  # the translation so far, for the next model
    was_cut: bool = False  # an intermediate answer ended at its length limit

    @property
    def words(self) -> str:
        """The text for the next model."""
        return self.text if self.between is None else self.between

    @property
    def is_pending(self) -> bool:
        return self.output is None and self.parts is None

    def pending(self) -> "Iterator[Draft]":
        """The fragments that still need a request."""
        if self.parts is not None:
            for part in self.parts:
                if isinstance(part, Draft):
                    yield from part.pending()
        elif self.output is None:
            yield self

    def outputs(self) -> Iterator[Output]:
        """The outputs of all requests for the text."""
        for each in self._leaves():
            if each.output is not None:
                yield each.output

    def _leaves(self) -> "Iterator[Draft]":
        if self.parts is None:
            yield self
            return
        for part in self.parts:
            if isinstance(part, Draft):
                yield from part._leaves()

    @property
    def has_empty(self) -> bool:
        """Whether a model answered this text, or a fragment of it, with nothing."""
        return any(is_empty(output) for output in self.outputs())

    @property
    def is_cut(self) -> bool:
        """Whether an answer ended at its length limit."""
        return any(
            each.was_cut
            or (each.output is not None and each.output.choices[0].finish_reason == "length")
            for each in self._leaves()
        )

    def choice(self, index: int) -> str:
        """The translation. index: of the returned sequences"""
        text = self._choice(index)
        for placeholder, translation in self.restored.items():
            text = text.replace(placeholder, translation)
        return text

    def _choice(self, index: int) -> str:
        if self.parts is not None:
            return "".join(
                part if isinstance(part, str) else part.choice(index).strip() for part in self.parts
            )
        assert self.output is not None
        return self.output.choices[index].text

    def take(self, output: Output, *, is_last: bool) -> None:
        """Store a model's answer: the translation, or the text for the next model."""
        best = output.choices[0]
        if is_last or is_empty(output):
            self.output = output
        else:
            self.between = best.text
            self.was_cut |= best.finish_reason == "length"

    def take_apart(self, parts: Iterable[tuple[str, bool]]) -> None:
        """Split into fragments. parts: (text, whether to translate it)"""
        self.output = self.between = None
        self.was_cut = False
        self.parts = [
            Draft(text, self.max_characters // 4) if translatable else text
            for text, translatable in parts
        ]

    def hold_terms(self) -> None:
        """Start again with placeholders in place of glossary terms."""
        parts, restored, at = [], {}, 0
        for number, term in enumerate(self.terms, start=1):
            placeholder = f"{{T{number}}}"
            while placeholder in self.text:
                placeholder = f"{{T{placeholder[1:-1]}}}"
            restored[placeholder] = term.translation
            parts += [self.text[at : term.start], placeholder]
            at = term.end
        text = "".join([*parts, self.text[at:]])
        self.take_apart(())
        self.parts = [Draft(text, self.max_characters, restored=restored)]

    def go_around(self) -> None:
        """Start again with only the text between placeholders and terms."""
        spans = sorted([*self.spans, *(term.span for term in self.terms)])
        written = {term.span: term.translation for term in self.terms}
        self.take_apart(fragments(self.text, spans, written))

    def miss(self) -> Counter[str]:
        """The placeholders that occur too rarely or too often in the translation."""
        if not self.spans:
            return Counter()
        losses = (missed(self.text, self.spans, each) for each in self._translations())
        return next(filter(None, losses), Counter())

    def miss_terms(self) -> Counter[str]:
        """The translations of terms that are missing, and how many of each."""
        if not self.terms:
            return Counter()
        losses = (missed_terms(self.terms, each) for each in self._translations())
        return next(filter(None, losses), Counter())

    def _translations(self) -> Iterator[str]:
        num_choices = min((len(output.choices) for output in self.outputs()), default=1)
        return (self.choice(each) for each in range(num_choices))
