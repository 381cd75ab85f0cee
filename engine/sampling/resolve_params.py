"""ResolvedParams: every decoding parameter of a request, with all defaults applied.

The job's parameters come first, then the spec's length, then the checkpoint's generation
configuration, then the neutral values of `transformers`. The library's default `max_length` of 20
is not used: a request without any length gets DEFAULT_MAX_NEW_TOKENS, or the rest of the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from engine.errors import OutputTooLong, PromptTooLong, UnsupportedParameter
from engine.protocol.sampling_params import PARAMS, SamplingParams

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedParams:
    """All decoding parameters of a request; equal values decode alike."""

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False  # or "never"
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_return_sequences: int = 1
    seed: int | None = None  # None only when nothing is drawn
    stop: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return max(self.num_beams, self.num_return_sequences)

    def to_json(self) -> dict[str, Any]:
        """The parameters in effect, without those that cannot matter."""
        idle: set[str] = set()
        if not self.do_sample:
            idle |= {"temperature", "top_k", "top_p", "seed"}
        if self.num_beams == 1:
            idle |= {"length_penalty", "early_stopping"}
        if not self.stop:
            idle |= {"stop"}
        data = {name: getattr(self, name) for name in SETTINGS if name not in idle}
        if self.stop:
            data["stop"] = list(self.stop)
        return data


SETTINGS = tuple(each.name for each in fields(ResolvedParams))
RESOLVED_BY_RULE = ("max_new_tokens", "min_new_tokens", "max_length", "do_sample", "seed", "stop")
# The others are the job's, or else the checkpoint's, as they are.
INHERITED = tuple(name for name in PARAMS if name not in RESOLVED_BY_RULE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """The bounds on the number of tokens of an answer.

    `num_before` tokens count towards `max_length` and the context before the first new one: the
    whole prompt of a decoder-only model, the start token of an encoder-decoder.
    """

    num_before: int
    max_context_tokens: int | None  # of the decoder; None: the checkpoint names no limit
    max_new_tokens: int | None = None  # the spec's

    @property
    def remaining(self) -> int | None:
        if self.max_context_tokens is None:
            return None
        return max(self.max_context_tokens - self.num_before, 0)


def resolve(
    params: SamplingParams, own: Mapping[str, Any], limits: AnswerLimits, fresh_seed: int
) -> ResolvedParams:
    """Resolve the parameters of one request.

    own:        the settings of the checkpoint's generation configuration that are not None
    fresh_seed: used when the request samples and names no seed
    raises:     OutputTooLong, PromptTooLong or UnsupportedParameter
    """
    values: dict[str, Any] = {}
    for name in INHERITED:
        value = getattr(params, name)
        if value is None:
            value = own.get(name)
        if value is not None:
            values[name] = value
    do_sample = _do_sample(params, own)
    if not do_sample and values.get("temperature") == 0:
        del values["temperature"]  # greedy, said another way
    settings = ResolvedParams(
        max_new_tokens=_max_new_tokens(params, own, limits),
        min_new_tokens=_min_new_tokens(params, own, limits),
        do_sample=do_sample,
        seed=None if not do_sample else fresh_seed if params.seed is None else params.seed,
        stop=params.stop or _own_stop(own),
        **values,
    )
    _refuse_contradictions(params, settings)
    return settings


def max_prompt_tokens(
    params: SamplingParams, settings: ResolvedParams, limits: AnswerLimits
) -> int | None:
    """The longest prompt of a decoder-only model beside its answer; None if unlimited.

    An answer without a requested length gets half of the context.
    """
    if params.max_length is not None:
        return params.max_length // 2
    context = limits.max_context_tokens
    if context is None or params.max_new_tokens is not None:
        return None if context is None else context - settings.max_new_tokens
    return max(context - settings.max_new_tokens, context // 2)


def _do_sample(params: SamplingParams, own: Mapping[str, Any]) -> bool:
    """Whether to sample: a job that sets a sampling parameter samples, unless it says otherwise."""
    requested = {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(params, name)) is not None
    }
    if params.do_sample is None:
        if "temperature" in requested:
            return bool(requested["temperature"] > 0)
        return True if requested else bool(own.get("do_sample", False))
    if not params.do_sample and any(requested[name] != 0 for name in requested):
        raise UnsupportedParameter(next(iter(requested)), "it has no effect with do_sample=false")
    if params.do_sample and requested.get("temperature") == 0:
        raise UnsupportedParameter("temperature", "0 cannot be sampled; use do_sample=false")
    return params.do_sample


def _max_new_tokens(params: SamplingParams, own: Mapping[str, Any], limits: AnswerLimits) -> int:
    if params.max_new_tokens is not None and params.max_length is not None:
        raise UnsupportedParameter("max_length", "use it or max_new_tokens, not both")
    num_left = limits.remaining
    if params.max_new_tokens is not None:
        return _within(num_left, "max_new_tokens", params.max_new_tokens, 0)
    if params.max_length is not None:
        if params.max_length <= limits.num_before:
            remedy = "max_length counts the prompt; raise it or use max_new_tokens"
            raise PromptTooLong(limits.num_before, params.max_length - 1, remedy)
        return _within(num_left, "max_length", params.max_length, limits.num_before)
    num_tokens = limits.max_new_tokens or own.get("max_new_tokens")
    if num_tokens is None and own.get("max_length") is not None:
        # A checkpoint's total length that the prompt alone exceeds is ignored.
        num_tokens = max(own["max_length"] - limits.num_before, 0)
    num_tokens = num_tokens or DEFAULT_MAX_NEW_TOKENS
    return int(num_tokens) if num_left is None else min(int(num_tokens), num_left)


def _within(left: int | None, name: str, num_tokens: int, num_before: int) -> int:
    if left is not None and num_tokens - num_before > left:
        reason = "after this prompt" if num_before > 1 else "within the model's context"
        raise OutputTooLong(name, num_tokens, left + num_before, reason)
    return num_tokens - num_before


def _min_new_tokens(params: SamplingParams, own: Mapping[str, Any], limits: AnswerLimits) -> int:
    if params.min_new_tokens is not None:
        return params.min_new_tokens
    if own.get("min_new_tokens") is not None:
        return int(own["min_new_tokens"])
    return max(int(own.get("min_length") or 0) - limits.num_before, 0)


def _own_stop(own: Mapping[str, Any]) -> tuple[str, ...]:
    stop = own.get("stop_strings") or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _refuse_contradictions(params: SamplingParams, settings: ResolvedParams) -> None:
    num_returned, num_beams = settings.num_return_sequences, settings.num_beams
    if num_beams > 1 and num_returned > num_beams:
        raise UnsupportedParameter(
            "num_return_sequences",
            f"{num_returned} cannot be returned from num_beams={num_beams}; raise num_beams",
        )
    if num_beams == 1 and num_returned > 1 and not settings.do_sample:
        raise UnsupportedParameter(
            "num_return_sequences",
            f"greedy decoding gives one answer, not {num_returned}; "
            "use num_beams or sample (temperature, top_k, top_p)",
        )
    if (params.min_new_tokens or 0) > settings.max_new_tokens:
        raise UnsupportedParameter(
            "min_new_tokens",
            f"{params.min_new_tokens} is above the {settings.max_new_tokens} tokens "
            "this request may have; raise max_new_tokens",
        )
