"""Retries: requests a part once more, with other parameters, if its answer is suspicious."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from db.outcome import Answer, Signals
from db.suspicion import Suspicion
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from worker.documents.languages import short_code
from worker.guards.reasons import measured, suspicions, untranslated
from worker.guards.settings import GuardSettings
from worker.recipes.recipe import Fallible, Steps

MIN_NEW_TOKENS = 4  # of an answer that was empty
NO_REPEAT_NGRAM_SIZE = 3
NUM_BEAMS = 4
# Reasons to retry a single part; the translate recipe retries for placeholders and terms itself.
OF_A_PART = frozenset(Suspicion) - {Suspicion.PLACEHOLDERS_MISSED, Suspicion.TERMS_MISSED}


def retrying(
    steps: Steps, settings: GuardSettings, language: str | None, request_ids: Iterator[int]
) -> Steps:
    """Wrap a recipe's steps: suspicious outputs are retried before the recipe sees them.

    language: the answers' expected language, in two letters; None: that of their source
    """
    requests = next(steps)
    num_retried = num_better = prompt_tokens = completion_tokens = 0
    while True:
        sent_requests: list[Request] = []
        outputs = yield _recorded(requests, sent_requests)
        suspects = {
            index: replace(request, id=next(request_ids), params=params)
            for index, (request, output) in enumerate(zip(sent_requests, outputs, strict=True))
            if (params := _retry_params(settings, request, output, language)) is not None
        }
        if suspects:
            again = yield Fallible(suspects.values())
            replaced = list(outputs)
            for (index, request), output in zip(suspects.items(), again, strict=True):
                before = outputs[index]
                is_better = _is_better(settings, request, before, output, language)
                dropped = before if is_better else output
                num_retried += 1
                num_better += is_better
                prompt_tokens += dropped.prompt_tokens
                completion_tokens += sum(each.completion_tokens for each in dropped.choices)
                if is_better:
                    replaced[index] = output
            outputs = tuple(replaced)
        try:
            requests = steps.send(outputs)
        except StopIteration as finished:
            answer: Answer = finished.value
            if not num_retried:
                return answer
            guards = {"num_retried": num_retried, "num_better": num_better}
            return replace(
                answer,
                prompt_tokens=answer.prompt_tokens + prompt_tokens,
                completion_tokens=answer.completion_tokens + completion_tokens,
                provenance={**answer.provenance, "guards": guards},
            )


def _recorded(requests: Iterable[Request], recorded: list[Request]) -> Iterable[Request]:
    """Yield the requests and record them, since a long step makes them lazily."""

    def noted() -> Iterator[Request]:
        for request in requests:
            recorded.append(request)
            yield request

    return Fallible(noted()) if isinstance(requests, Fallible) else noted()


def _retry_params(
    settings: GuardSettings, request: Request, output: Output, language: str | None
) -> SamplingParams | None:
    """The params of a retry; None if no suspicion of the output calls for one."""
    reasons = [
        each
        for each in _suspicions(settings, request, output, language)
        if settings.action_for(each).retries
    ]
    if not reasons:
        return None
    return changed(request.params, reasons, output.settings, settings.retry_with)


def changed(
    params: SamplingParams,
    reasons: Iterable[Suspicion],
    used: Mapping[str, Any],
    retry_with: Mapping[str, Any],
) -> SamplingParams:
    """The params of a retry: changed for each reason, and then overridden by the settings."""
    changes: dict[str, Any] = {}
    for reason in reasons:
        match reason:
            case Suspicion.EMPTY:
                most = params.max_new_tokens or MIN_NEW_TOKENS
                changes["min_new_tokens"] = min(MIN_NEW_TOKENS, most)
            case Suspicion.REPETITION:
                changes["no_repeat_ngram_size"] = NO_REPEAT_NGRAM_SIZE
            case Suspicion.CUT_BY_LENGTH:
                changes["max_new_tokens"] = 2 * int(used.get("max_new_tokens") or 128)
                changes["max_length"] = None
            case _ if used.get("do_sample"):
                changes["seed"] = (params.seed or 0) + 1
            case _:
                changes["num_beams"] = max(NUM_BEAMS, 2 * int(used.get("num_beams") or 1))
    return replace(params, **{**changes, **retry_with})


def _is_better(
    settings: GuardSettings,
    request: Request,
    before: Output,
    after: Output,
    language: str | None,
) -> bool:
    if after.failure is not None or len(after.choices) < len(before.choices):
        return False
    num_before = len(_suspicions(settings, request, before, language))
    return len(_suspicions(settings, request, after, language)) < num_before


def _suspicions(
    settings: GuardSettings, request: Request, output: Output, language: str | None
) -> list[Suspicion]:
    if not output.choices:
        return []
    source = request.text if request.text is not None else _last_turn(request)
    best = output.choices[0]
    num_left, num_letters = 0, 0
    if request.task == "translate":
        # On a route through several languages, that of this request.
        language = short_code(request.target_language or language or "")
        num_left, num_letters = untranslated(source, best.text)
    counts = Signals(
        num_empty_parts=int(not best.text.strip()),
        num_cut_parts=int(best.finish_reason == "length"),
        untranslated_share=num_left / num_letters if num_letters else None,
    )
    signals = measured(settings, source, best.text, counts)
    reasons = suspicions(settings, source, best.text, signals, language)
    return [each for each in reasons if each in OF_A_PART]


def _last_turn(request: Request) -> str:
    return request.messages[-1].content if request.messages else ""
