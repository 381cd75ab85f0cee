"""The summarize recipe: the whole text in one request, or part by part if it is too long.

`docs/documents.md` describes the strategies.
"""

from dataclasses import replace
from math import ceil
from typing import Any

from db.outcome import Answer
from engine.protocol.output import Output
from engine.protocol.sampling_params import SamplingParams
from worker.documents.context import Context
from worker.documents.coverage import Coverage, TextRange, left_out
from worker.documents.words import count_words, first_words
from worker.errors import RequestFailed, SummaryNotShorter
from worker.recipes.parts import Ruler, TextPart, cut, first_part, ruler
from worker.recipes.recipe import Asking, Steps, Work, answer_of, reasoning_tokens

# A longer text is not tried as one request: while it is refused, no other request is tokenized.
MAX_TRIED_CHARACTERS = 100_000
TOO_LONG = ("prompt_too_long", "output_too_long", "unsupported_parameter")
WORD_MARGIN = 1.3  # tokens a word beyond what the source has: names and numbers are dear


def summarize(work: Work) -> Steps:
    text = work.contract["text"]
    strategy = work.contract.get("strategy", "auto")
    counts_words = any(name in work.contract for name in ("max_words", "min_words", "ratio"))
    is_tried = strategy == "fail" or (strategy == "auto" and len(text) <= MAX_TRIED_CHARACTERS)
    by_section = work.contract.get("by_section", False)
    if is_tried and not counts_words and not by_section:
        try:
            (output,) = yield (work.request(task="summarize", text=text),)
            return _answer(work, [output], _whole(text, output))
        except RequestFailed as failure:
            if strategy == "fail" or failure.code not in TOO_LONG:
                raise
    return (yield from _document(work, text, strategy))


def _document(work: Work, text: str, strategy: str) -> Steps:
    """Summarize a text that is counted first."""
    params, max_words = work.params, None
    if any(name in work.contract for name in ("max_words", "min_words", "ratio")):
        params, max_words = yield from _params_for_words(work, text)
    whole = yield from ruler(work, params, text)
    if strategy == "truncate":
        part = yield from first_part(work, whole, text)
        request = work.request(task="summarize", text=part.text(text), params=params)
        (output,) = yield (request,)
        coverage = Coverage(
            strategy="truncate",
            parts=1,
            rounds=1,
            source_characters=len(text),
            source_tokens=output.prompt_tokens,
            left_out=left_out([part.span], len(text)),
        )
        return _answer(work, [output], coverage, max_words)
    if strategy == "fail":
        (output,) = yield (work.request(task="summarize", text=text, params=params),)
        return _answer(work, [output], _whole(text, output), max_words)
    part_params = _part_params(params, whole)
    by_section = work.contract.get("by_section", False)
    context = _context(work, text)
    if strategy == "refine":
        # Half of the room is for the part: the summary so far has a quarter, and may have more
        # tokens as a prompt than as an answer.
        half = replace(whole, max_tokens=whole.overhead + whole.room // 2)
        parts = yield from cut(work, half, text, context, by_section=by_section)
        outputs, rounds = yield from _refine(work, text, parts, params, part_params)
    else:
        parts = yield from cut(work, whole, text, context, by_section=by_section)
        outputs, rounds = yield from _map_reduce(work, whole, text, parts, params, part_params)
    num_read = sum(part.num_tokens > 0 for part in parts)
    coverage = Coverage(
        strategy="single" if rounds == 1 else "refine" if strategy == "refine" else "map_reduce",
        parts=len(parts),
        rounds=rounds,
        source_characters=len(text),
        source_tokens=sum(part.num_tokens for part in parts),
        left_out=left_out([part.span for part in parts], len(text)),
        parts_cut=sum(_is_cut(each) for each in outputs[:num_read]) if rounds > 1 else 0,
        context_characters=sum(len(part.context) for part in parts),
    )
    return _answer(work, outputs, coverage, max_words)


def _context(work: Work, text: str) -> Context | None:
    """The context for parts; None if the job asks for none."""
    heading_path = work.contract.get("heading_path", False)
    overlap_sentences = work.contract.get("overlap_sentences", 0)
    if not (heading_path or overlap_sentences):
        return None
    return Context(text, heading_path=heading_path, overlap_sentences=overlap_sentences)


def _map_reduce(
    work: Work,
    whole: Ruler,
    text: str,
    parts: list[TextPart],
    params: SamplingParams,
    part_params: SamplingParams,
) -> Asking[tuple[list[Output], int]]:
    """Summarize each part, then the summaries in the same way, until they fit one part.

    Returns every output, the final one last, and the number of rounds.
    """
    outputs: list[Output] = []
    rounds = 1
    while len(parts) > 1:
        read = [part for part in parts if part.num_tokens > 0]
        summaries = yield (
            work.request(task="summarize", text=part.text(text), params=part_params)
            for part in read
        )
        outputs += summaries
        rounds += 1
        text = "\n\n".join(filter(None, (each.choices[0].text.strip() for each in summaries)))
        if not text:
            return outputs, rounds  # the model answered with nothing
        num_before = len(parts)
        parts = yield from cut(work, whole, text)
        if len(parts) >= num_before:
            raise SummaryNotShorter(num_before, len(parts))
    outputs += yield (work.request(task="summarize", text=parts[0].text(text), params=params),)
    return outputs, rounds


def _refine(
    work: Work,
    text: str,
    parts: list[TextPart],
    params: SamplingParams,
    part_params: SamplingParams,
) -> Asking[tuple[list[Output], int]]:
    """Summarize the first part; then, for each next part, the summary so far with it."""
    outputs: list[Output] = []
    summary = ""
    read = [part for part in parts if part.num_tokens > 0]
    for part in read:
        so_far = f"{summary}\n\n{part.text(text)}".strip()
        own = params if part is read[-1] else part_params
        outputs += yield (work.request(task="summarize", text=so_far, params=own),)
        summary = outputs[-1].choices[0].text.strip()
    return outputs, len(read)


def _part_params(params: SamplingParams, whole: Ruler) -> SamplingParams:
    """The params of a part: one answer, so short that four of them fit into a request.

    So each round is shorter than the one before.
    """
    most = max(whole.room // 4, 1)
    num_tokens = params.max_new_tokens or whole.max_new_tokens
    return replace(
        params,
        max_new_tokens=min(num_tokens, most),
        min_new_tokens=None if params.min_new_tokens is None else min(params.min_new_tokens, most),
        max_length=None,
        num_return_sequences=None,
    )


def _params_for_words(work: Work, text: str) -> Asking[tuple[SamplingParams, int | None]]:
    """Convert word limits into params; also returns the most words that an answer may have."""
    contract, params = work.contract, work.params
    measured = yield from ruler(work, params, text)
    tokens_per_word = max(measured.tokens_per_word, 1.0)
    bounds = [contract["max_words"]] if "max_words" in contract else []
    if "ratio" in contract:
        bounds.append(max(ceil(contract["ratio"] * count_words(text)), 1))
    max_words = min(bounds, default=None)
    if max_words is not None and params.max_length is None:
        most = ceil(max_words * tokens_per_word * WORD_MARGIN) + 8
        if params.max_new_tokens is not None or most < measured.max_new_tokens:
            most = min(most, params.max_new_tokens or most)
        params = replace(params, max_new_tokens=most)
    if "min_words" in contract:
        least = int(min(contract["min_words"], max_words or 10**6) * tokens_per_word)
        params = replace(params, min_new_tokens=max(least, params.min_new_tokens or 0))
        if params.max_length is None and (params.max_new_tokens or least) <= least:
            params = replace(params, max_new_tokens=2 * least)
    return params, max_words


def _whole(text: str, output: Output) -> Coverage:
    return Coverage(
        strategy="single",
        parts=1,
        rounds=1,
        source_characters=len(text),
        source_tokens=output.prompt_tokens,
        left_out=left_out([TextRange(0, len(text))], len(text)),
    )


def _is_cut(output: Output) -> bool:
    return output.choices[0].finish_reason == "length"


def _answer(
    work: Work, outputs: list[Output], coverage: Coverage, max_words: int | None = None
) -> Answer:
    """Make the answer from the last output, with the tokens of all."""
    answer = answer_of(work, outputs[-1])
    changes: dict[str, Any] = {
        "prompt_tokens": sum(each.prompt_tokens for each in outputs),
        "completion_tokens": sum(
            choice.completion_tokens for each in outputs for choice in each.choices
        ),
        "reasoning_tokens": reasoning_tokens(outputs),
        "coverage": coverage.to_json(),
        "left_out_characters": coverage.left_out_characters,
    }
    if max_words is not None:
        texts = [first_words(each, max_words) for each in (answer.output, *answer.alternatives)]
        if texts[0] != answer.output:
            changes["finish_reason"] = "length"
        changes |= {"output": texts[0], "alternatives": tuple(texts[1:])}
    return replace(answer, **changes)
