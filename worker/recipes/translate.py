"""The translate recipe: a request for each sentence, within the document's own layout.

If the route has several models, each sentence passes through them in order.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from db.outcome import Answer, Signals
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from worker.documents.languages import detect, short_code
from worker.documents.translation.glossary import Glossary
from worker.documents.translation.subtitles import has_cues, is_subtitles
from worker.documents.translation.translatable import Sentence, Translatable, cut
from worker.errors import LanguageUnclear, NotSubtitles, RequestFailed
from worker.guards.measures import length_of
from worker.guards.reasons import untranslated
from worker.recipes.draft import Draft, is_empty
from worker.recipes.recipe import Fallible, Steps, Work, card_json, reasoning_tokens

AUTO = ("auto", "und")  # a source language that is found out
PAIR = ">"
TOO_LONG = "prompt_too_long"
MAX_TOGETHER = 256  # requests of one document at once, so that others get their turn
MAX_CHARACTERS = 2_000  # of a part, where the model names no limit
CHARACTERS_PER_TOKEN = 8  # more than any sentence has
MIN_CHARACTERS = 8  # a part as short as this is not cut further
MIN_NEW_TOKENS = 4  # of an answer that was empty at first
MAX_REPORTED = 100  # sentences with misses that a result lists


@dataclass(frozen=True, slots=True)
class Leg:
    """One model's part of a translation; `model` is None for the job's own."""

    source: str
    target: str
    model: str | None = None


Drafts = dict[Sentence, Draft]


def translate(work: Work) -> Steps:
    text: str = work.contract["text"]
    legs, detected = _legs(work, text)
    source, target = legs[0].source, legs[-1].target
    document = Translatable.of(text, short_code(source), work.contract.get("format"))
    if document.format == "subtitles" and not (is_subtitles(text) or has_cues(text)):
        raise NotSubtitles
    # On a route the limit does not depend on a model: the next engine must cut in the same way.
    longest = (work.card.max_context_tokens if len(legs) == 1 else None) or MAX_CHARACTERS
    drafts = _drafts(document, Glossary(work.contract.get("glossary") or {}), longest)
    own = list(dict.fromkeys(drafts.values()))
    endless = [each for each in own if len(each.text) > CHARACTERS_PER_TOKEN * longest]
    for draft in endless:
        draft.take_apart(cut(draft.text, longest))
    usage = Usage()
    num_cut = len(endless)
    num_cut += yield from _finish(work, legs, own, usage)
    drafts_with_terms = [draft for draft in own if not draft.miss() and draft.miss_terms()]
    for draft in drafts_with_terms:
        draft.hold_terms()
    num_cut += yield from _finish(work, legs, drafts_with_terms, usage)
    around = [draft for draft in own if draft.miss() or draft.miss_terms()]
    for draft in around:
        draft.go_around()
    num_cut += yield from _finish(work, legs, around, usage)

    outputs = [output for draft in own for output in draft.outputs()]
    best, *others = _documents(document, drafts, outputs, short_code(target))
    report: dict[str, Any] = {
        **document.coverage(),
        "format": document.format,
        "source_language": source,
        **detected,
        "num_translated": sum(bool(each.choice(0).strip()) for each in drafts.values()),
        "num_cut": num_cut,
        "num_placeholders": sum(len(each.spans) for each in drafts.values()),
        "num_terms": sum(len(each.terms) for each in drafts.values()),
        "num_retried": len(set(map(id, (*drafts_with_terms, *around)))),
        "num_asked_again": usage.num_asked_again,
        "empty": list(islice(_empty(drafts), MAX_REPORTED)),
        "missed": list(islice(_misses(drafts), MAX_REPORTED)),
        "missed_terms": list(islice(_missed_terms(drafts), MAX_REPORTED)),
    }
    if len(legs) > 1:
        report["route"] = [_in_report(work, leg) for leg in legs]
    is_cut = any(draft.is_cut for draft in own)
    return Answer(
        output=best,
        alternatives=tuple(others),
        finish_reason="length" if is_cut else "stop",
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning=outputs[0].choices[0].reasoning if len(outputs) == 1 else None,
        reasoning_tokens=usage.reasoning_tokens,
        provenance={
            "settings": dict(outputs[0].settings) if outputs else {},
            "document": report,
        },
        model_card=card_json(work.card),
        signals=_signals(drafts),
    )


def _drafts(document: Translatable, glossary: Glossary, longest: int) -> Drafts:
    """A draft for each sentence; equal sentences share one."""
    by_content: dict[Any, Draft] = {}
    drafts: Drafts = {}
    for sentence in document.sentences:
        key = sentence.text, sentence.spans
        if key not in by_content:
            terms = glossary.find(sentence.text, sentence.spans)
            by_content[key] = Draft(sentence.text, longest, sentence.spans, terms)
        drafts[sentence] = by_content[key]
    return drafts


def _signals(drafts: Drafts) -> Signals:
    """The signals of the whole translation, from all its sentences, repeated ones included."""
    pairs = [(sentence.text, draft.choice(0)) for sentence, draft in drafts.items()]
    num_before = sum(length_of(source) for source, _ in pairs)
    num_after = sum(length_of(translation) for _, translation in pairs)
    letters = [untranslated(source, translation) for source, translation in pairs]
    num_left, num_letters = (sum(each[at] for each in letters) for at in (0, 1))
    own = drafts.values()
    return Signals(
        length_ratio=round(num_after / num_before, 4) if num_before else None,
        untranslated_share=round(num_left / num_letters, 4) if num_letters else None,
        num_empty_parts=sum(draft.has_empty for draft in own),
        num_cut_parts=sum(draft.is_cut for draft in own),
        num_missed_placeholders=sum(sum(map(abs, draft.miss().values())) for draft in own),
        num_missed_terms=sum(sum(draft.miss_terms().values()) for draft in own),
    )


@dataclass(slots=True)
class Usage:
    """The token counts of all requests, first tries included."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int | None = None  # of the completions'; None where no model thinks
    num_asked_again: int = 0  # because the answer was empty

    def add(self, output: Output) -> None:
        self.prompt_tokens += output.prompt_tokens
        self.completion_tokens += sum(each.completion_tokens for each in output.choices)
        if (thought := reasoning_tokens([output])) is not None:
            self.reasoning_tokens = (self.reasoning_tokens or 0) + thought


def _legs(work: Work, text: str) -> tuple[list[Leg], dict[str, Any]]:
    """The route from the source to the target, and how it was chosen, for the result."""
    contract = work.contract
    route: Sequence[dict[str, Any]] = contract.get("route") or (contract,)
    legs = [
        Leg(
            each["source_language"],
            each["target_language"],
            each.get("model") if len(route) > 1 else None,
        )
        for each in route
    ]
    first = legs[0]
    if first.source.lower() not in AUTO:
        return legs, {}
    guess = detect(text, _sources(route[0].get("languages", work.languages), first.target))
    if guess.language is None:
        raise LanguageUnclear(guess.candidates, guess.num_letters)
    legs[0] = replace(first, source=guess.language)
    return legs, {"detected_confidence": round(guess.confidence, 4)}


def _sources(languages: Iterable[str], target: str) -> tuple[str, ...]:
    """The languages that a model translates into this one; empty: any that it knows."""
    entries = list(languages)
    pairs = [entry.partition(PAIR) for entry in entries if PAIR in entry]
    into = [source for source, _, to in pairs if short_code(to) == short_code(target)]
    single = [entry for entry in entries if PAIR not in entry]
    return (*into, *(each for each in single if short_code(each) != short_code(target)))


def _in_report(work: Work, leg: Leg) -> dict[str, Any]:
    assert leg.model is not None
    return {
        **work.models.get(leg.model, {}),
        "model": leg.model,
        "source_language": leg.source,
        "target_language": leg.target,
    }


def _finish(
    work: Work, legs: Sequence[Leg], drafts: Iterable[Draft], usage: Usage
) -> Generator[tuple[Request, ...], tuple[Output, ...], int]:
    """Translate all drafts; too long ones are split. Returns how many were split."""
    num_cut = 0
    waiting = [each for draft in drafts for each in draft.pending()]
    while waiting:
        too_long: list[Draft] = []
        # All of them through one model before the next, which may be another worker's.
        for leg in legs:
            for first in range(0, len(waiting), MAX_TOGETHER):
                together = waiting[first : first + MAX_TOGETHER]
                outputs = yield from _ask(work, leg, together, usage, leg is legs[-1])
                for draft, output in zip(together, outputs, strict=True):
                    if output.failure is None:
                        draft.take(output, is_last=leg is legs[-1])
                    elif output.failure.code == TOO_LONG and draft.max_characters >= MIN_CHARACTERS:
                        draft.take_apart(
                            cut(draft.text, min(draft.max_characters, len(draft.text) // 2 + 1))
                        )
                        too_long.append(draft)
                    else:
                        raise RequestFailed(output.failure)
            waiting = [draft for draft in waiting if draft.is_pending]
        num_cut += len(too_long)
        waiting = [each for draft in too_long for each in draft.pending()]
    return num_cut


def _ask(
    work: Work, leg: Leg, drafts: Sequence[Draft], usage: Usage, is_last: bool
) -> Generator[tuple[Request, ...], tuple[Output, ...], list[Output]]:
    """Request these drafts, and retry those with an empty answer with other parameters."""
    params = work.params
    if not is_last:
        # Several answers and stop strings only apply to the target language.
        params = replace(params, num_return_sequences=None, stop=())
    outputs = list((yield Fallible(_request(work, leg, each, params) for each in drafts)))
    for output in outputs:
        usage.add(output)
    silent = [
        at for at, output in enumerate(outputs) if output.failure is None and is_empty(output)
    ]
    if silent:
        again = yield Fallible(
            _request(work, leg, drafts[at], _not_silent(params, outputs[at])) for at in silent
        )
        usage.num_asked_again += len(silent)
        for at, output in zip(silent, again, strict=True):
            usage.add(output)
            if output.failure is None and not is_empty(output):
                outputs[at] = output
    return outputs


def _request(work: Work, leg: Leg, draft: Draft, params: SamplingParams) -> Request:
    return work.request(
        task="translate",
        text=draft.words,
        source_language=leg.source,
        target_language=leg.target,
        params=params,
        model=leg.model,
    )


def _not_silent(params: SamplingParams, output: Output) -> SamplingParams:
    """SamplingParams that forbid an empty answer."""
    most = int(output.settings.get("max_new_tokens") or MIN_NEW_TOKENS)
    least = max(min(MIN_NEW_TOKENS, most), params.min_new_tokens or 0)
    return replace(params, min_new_tokens=least)


def _documents(
    document: Translatable, drafts: Drafts, outputs: Sequence[Output], language: str
) -> list[str]:
    """The document once for each returned sequence, the best first."""
    num_choices = min((len(output.choices) for output in outputs), default=1)
    is_whole = document.is_one_sentence
    return [
        document.join(
            [
                # A single sentence is exactly the model's answer.
                text if is_whole else " ".join(text.split()) if "\n" in text else text.strip()
                for text in (drafts[each].choice(index) for each in document.sentences)
            ],
            language,
        )
        for index in range(num_choices)
    ]


def _empty(drafts: Drafts) -> Iterator[dict[str, Any]]:
    """The sentences with an empty answer even after the retry."""
    for place, draft in _places(drafts):
        if draft.has_empty:
            yield place


def _misses(drafts: Drafts) -> Iterator[dict[str, Any]]:
    """The sentences whose placeholders were not kept."""
    for place, draft in _places(drafts):
        if differences := draft.miss():
            yield {**place, "placeholders": dict(differences)}


def _missed_terms(drafts: Drafts) -> Iterator[dict[str, Any]]:
    """The sentences without the glossary's translation of a term."""
    for place, draft in _places(drafts):
        if missing := draft.miss_terms():
            yield {**place, "terms": dict(missing)}


def _places(drafts: Drafts) -> Iterator[tuple[dict[str, Any], Draft]]:
    for number, (sentence, draft) in enumerate(drafts.items()):
        yield {"sentence": number, "start": sentence.start, "end": sentence.end}, draft
