"""A translation: a request for each sentence, and the document's own layout around them."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from db.outcome import Answer, Signals
from engine.protocol.messages import Output, Params, Request
from worker.documents.languages import detect, short_code
from worker.documents.placeholders import Span, missed
from worker.documents.translatable import Sentence, Translatable, cut, fragments
from worker.errors import LanguageUnclear, RequestFailed
from worker.guards.measures import length_of
from worker.guards.reasons import untranslated
from worker.recipes.recipe import Fallible, Steps, Work

AUTO = "auto"
PAIR = ">"
TOO_LONG = "prompt_too_long"
MAX_TOGETHER = 256  # requests of one document at once, so that others get their turn
MAX_CHARACTERS = 2_000  # of a part, where the model names no limit
CHARACTERS_PER_TOKEN = 8  # more than any sentence has
MIN_CHARACTERS = 8  # a part as short as this is not cut further
MIN_NEW_TOKENS = 4  # of an answer that was empty at first
MAX_REPORTED = 100  # sentences with misses that a result lists


@dataclass(slots=True)
class Draft:
    """A text on its way: one request, or the parts that it had to be taken apart into."""

    text: str
    max_characters: int  # of the parts, if it is too long
    spans: tuple[Span, ...] = ()
    output: Output | None = None
    parts: "list[Draft | str] | None" = None

    def pending(self) -> "Iterator[Draft]":
        """What still needs a request."""
        if self.parts is not None:
            for part in self.parts:
                if isinstance(part, Draft):
                    yield from part.pending()
        elif self.output is None:
            yield self

    def outputs(self) -> Iterator[Output]:
        """Of the requests that the text is made of."""
        if self.parts is not None:
            for part in self.parts:
                if isinstance(part, Draft):
                    yield from part.outputs()
        elif self.output is not None:
            yield self.output

    @property
    def has_empty(self) -> bool:
        """Whether the model had nothing to say to this text, or to a part of it."""
        return any(_is_empty(output) for output in self.outputs())

    def choice(self, index: int) -> str:
        """The translation; index: of the sequences returned."""
        if self.parts is not None:
            return "".join(
                part if isinstance(part, str) else part.choice(index).strip() for part in self.parts
            )
        assert self.output is not None
        return self.output.choices[index].text

    def take_apart(self, parts: Iterable[tuple[str, bool]]) -> None:
        """Into (text, whether it is to be translated)."""
        self.parts = [
            Draft(text, self.max_characters // 4) if translatable else text
            for text, translatable in parts
        ]

    def miss(self) -> Counter[str]:
        """The placeholders that a translation has too few or too many of."""
        if not self.spans:
            return Counter()
        num_choices = min((len(output.choices) for output in self.outputs()), default=1)
        found = (missed(self.text, self.spans, self.choice(each)) for each in range(num_choices))
        return next(filter(None, found), Counter())


Key = tuple[str, tuple[Span, ...]]


def key_of(sentence: Sentence) -> Key:
    """Sentences that are one to the model, and are asked for once."""
    return sentence.text, sentence.spans


def translate(work: Work) -> Steps:
    text: str = work.contract["text"]
    target: str = work.contract["target_language"]
    source, detected = _source(work, text, target)
    document = Translatable.of(text, short_code(source), work.contract.get("format"))
    longest = work.card.max_context_tokens or MAX_CHARACTERS
    drafts = {
        key_of(sentence): Draft(sentence.text, longest, sentence.spans)
        for sentence in document.sentences
    }
    endless = [each for each in drafts.values() if len(each.text) > CHARACTERS_PER_TOKEN * longest]
    for draft in endless:
        draft.take_apart(cut(draft.text, longest))
    usage = Usage()
    num_cut = len(endless)
    num_cut += yield from _finish(work, source, drafts.values(), usage)
    retried = [draft for draft in drafts.values() if draft.miss()]
    for draft in retried:
        # Around the placeholders instead of with them: then nothing can touch these.
        draft.take_apart(fragments(draft.text, draft.spans))
    num_cut += yield from _finish(work, source, retried, usage)

    outputs = [output for draft in drafts.values() for output in draft.outputs()]
    best, *others = _documents(document, drafts, outputs, short_code(target))
    report = {
        **document.coverage(),
        "format": document.format,
        "source_language": source,
        **detected,
        "num_translated": sum(
            bool(drafts[key_of(each)].choice(0).strip()) for each in document.sentences
        ),
        "num_cut": num_cut,
        "num_placeholders": sum(len(drafts[key_of(each)].spans) for each in document.sentences),
        "num_retried": len(retried),
        "num_asked_again": usage.num_asked_again,
        "empty": list(islice(_empty(document, drafts), MAX_REPORTED)),
        "missed": list(islice(_misses(document, drafts), MAX_REPORTED)),
    }
    finish_reasons = {output.choices[0].finish_reason for output in outputs}
    return Answer(
        output=best,
        alternatives=tuple(others),
        finish_reason="length" if "length" in finish_reasons else "stop",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        provenance={
            "settings": dict(outputs[0].settings) if outputs else {},
            "document": report,
        },
        model_card=work.card.to_json(),
        signals=_signals(document, drafts),
    )


def _signals(document: Translatable, drafts: dict[Key, Draft]) -> Signals:
    """What the sentences say of the whole; every one counts, those that are equal too."""
    pairs = [(each.text, drafts[key_of(each)].choice(0)) for each in document.sentences]
    num_before = sum(length_of(source) for source, _ in pairs)
    num_after = sum(length_of(translation) for _, translation in pairs)
    letters = [untranslated(source, translation) for source, translation in pairs]
    num_left, num_letters = (sum(each[at] for each in letters) for at in (0, 1))
    own = [drafts[key_of(each)] for each in document.sentences]
    return Signals(
        length_ratio=round(num_after / num_before, 4) if num_before else None,
        untranslated_share=round(num_left / num_letters, 4) if num_letters else None,
        num_empty_parts=sum(draft.has_empty for draft in own),
        num_cut_parts=sum(
            any(output.choices[0].finish_reason == "length" for output in draft.outputs())
            for draft in own
        ),
        num_missed_placeholders=sum(sum(map(abs, draft.miss().values())) for draft in own),
    )


@dataclass(slots=True)
class Usage:
    """The tokens of every request, those of a first try included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_asked_again: int = 0  # because the answer was empty

    def add(self, output: Output) -> None:
        self.prompt_tokens += output.prompt_tokens
        self.completion_tokens += sum(each.completion_tokens for each in output.choices)


def _source(work: Work, text: str, target: str) -> tuple[str, dict[str, Any]]:
    """The source language, and what the result says of how it was found."""
    named: str = work.contract["source_language"]
    if named.lower() != AUTO:
        return named, {}
    guess = detect(text, _sources(work.languages, target))
    if guess.language is None:
        raise LanguageUnclear(guess.candidates, guess.num_letters)
    return guess.language, {"detected_confidence": round(guess.confidence, 4)}


def _sources(languages: Iterable[str], target: str) -> tuple[str, ...]:
    """The languages that a model turns into this one; none: any that it knows."""
    entries = list(languages)
    pairs = [entry.partition(PAIR) for entry in entries if PAIR in entry]
    into = [source for source, _, to in pairs if short_code(to) == short_code(target)]
    single = [entry for entry in entries if PAIR not in entry]
    return (*into, *(each for each in single if short_code(each) != short_code(target)))


def _finish(
    work: Work, source: str, drafts: Iterable[Draft], usage: Usage
) -> Generator[tuple[Request, ...], tuple[Output, ...], int]:
    """Translate all; what is too long for the model goes in parts. Returns how many were cut."""
    num_cut = 0
    waiting = list(drafts)
    while pending := list(
        islice((each for draft in waiting for each in draft.pending()), MAX_TOGETHER)
    ):
        outputs = yield Fallible(
            work.request(
                task="translate",
                text=draft.text,
                source_language=source,
                target_language=work.contract["target_language"],
            )
            for draft in pending
        )
        for draft, output in zip(pending, outputs, strict=True):
            usage.add(output)
            if output.failure is None:
                draft.output = output
            elif output.failure.code == TOO_LONG and draft.max_characters >= MIN_CHARACTERS:
                draft.take_apart(
                    cut(draft.text, min(draft.max_characters, len(draft.text) // 2 + 1))
                )
                num_cut += 1
            else:
                raise RequestFailed(output.failure)
        yield from _ask_again(work, source, [each for each in pending if _is_silent(each)], usage)
        waiting = [draft for draft in waiting if next(draft.pending(), None) is not None]
    return num_cut


def _ask_again(
    work: Work, source: str, drafts: Sequence[Draft], usage: Usage
) -> Generator[tuple[Request, ...], tuple[Output, ...], None]:
    """Texts to which the model had nothing to say, once more: so that it may not end at once."""
    if not drafts:
        return
    outputs = yield Fallible(
        work.request(
            task="translate",
            text=draft.text,
            source_language=source,
            target_language=work.contract["target_language"],
            params=_not_silent(work.params, draft),
        )
        for draft in drafts
    )
    usage.num_asked_again += len(drafts)
    for draft, output in zip(drafts, outputs, strict=True):
        usage.add(output)
        if output.failure is None and not _is_empty(output):
            draft.output = output


def _is_silent(draft: Draft) -> bool:
    return draft.output is not None and _is_empty(draft.output)


def _is_empty(output: Output) -> bool:
    return not output.choices[0].text.strip()


def _not_silent(params: Params, draft: Draft) -> Params:
    assert draft.output is not None
    most = int(draft.output.settings.get("max_new_tokens") or MIN_NEW_TOKENS)
    least = max(min(MIN_NEW_TOKENS, most), params.min_new_tokens or 0)
    return replace(params, min_new_tokens=least)


def _documents(
    document: Translatable,
    drafts: dict[Key, Draft],
    outputs: Sequence[Output],
    language: str,
) -> list[str]:
    """The document once for each sequence that was asked for, the best first."""
    num_choices = min((len(output.choices) for output in outputs), default=1)
    is_whole = len(document.sentences) == 1
    return [
        document.join(
            [
                # Alone, it is the model's answer to the letter.
                text if is_whole else " ".join(text.split()) if "\n" in text else text.strip()
                for text in (drafts[key_of(each)].choice(index) for each in document.sentences)
            ],
            language,
        )
        for index in range(num_choices)
    ]


def _empty(document: Translatable, drafts: dict[Key, Draft]) -> Iterator[dict[str, Any]]:
    """The sentences to which the model had nothing to say, at a second try either."""
    for number, sentence in enumerate(document.sentences):
        if drafts[key_of(sentence)].has_empty:
            yield {"sentence": number, "start": sentence.start, "end": sentence.end}


def _misses(document: Translatable, drafts: dict[Key, Draft]) -> Iterator[dict[str, Any]]:
    """The sentences whose placeholders did not come out as they went in."""
    for number, sentence in enumerate(document.sentences):
        differences = drafts[key_of(sentence)].miss()
        if differences:
            yield {
                "sentence": number,
                "start": sentence.start,
                "end": sentence.end,
                "placeholders": dict(differences),
            }
