"""An engine counts prompts as it reads them, and says how long they may be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.loader import load
from engine.core.scheduler import StepLimits
from engine.errors import RequestError
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Measurement
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.checkpoints import sentences
from tests.parity.trials.joining import spec_of

TEXTS = (*sentences(6), *sentences(3, "zh"), "x", " \n ", "", "a\r\n\r\nb", "👨‍👩‍👧‍👦" * 3)
KINDS = ["t5", "bart", "pegasus", "gpt2", "llama", "qwen2"]
CASES = {
    "plain": {},
    "beams": {"params": SamplingParams(num_beams=3, max_new_tokens=40)},
    "long answers": {"params": SamplingParams(max_new_tokens=200)},
    "the prompt counts": {"params": SamplingParams(max_length=120)},
    "configured": {"max_input_tokens": 50},
    "little cache": {"max_cache_tokens": 400},
    "in steps of 64": {"max_step_tokens": 64, "max_sequences": 8},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_prompt_is_as_long_as_the_prompt_that_runs(
    kind: str, case: str, folder_of
) -> None:
    given = dict(CASES[case])
    request = Request(id=1, task="summarize", params=given.pop("params", SamplingParams()))
    spec = EngineSpec(alias="tiny", checkpoint=str(folder_of(kind)), device="cpu", **given)
    engine = load(spec)
    measured = engine.measure(replace(request, measured_texts=TEXTS))
    for text, num_tokens in zip(TEXTS, measured.num_tokens, strict=True):
        assert (num_tokens == 0) == (not text.strip())
        if text.strip() and num_tokens <= measured.max_prompt_tokens:
            short = replace(request, text=text, params=SamplingParams(max_new_tokens=1))
            assert len(load_encoded(engine, short)) == num_tokens

    def taken(num_words: int) -> tuple[int, bool]:
        text = "mill " * num_words
        measurement: Measurement = engine.measure(replace(request, measured_texts=(text,)))
        try:
            sequence = engine.encode(replace(request, text=text))
            StepLimits.of(engine.sized.spec).refuse_misfit(sequence)
        except RequestError:
            return measurement.num_tokens[0], False
        return measurement.num_tokens[0], True

    fitting = [taken(num) for num in range(1, 300, 7)]
    assert all(
        is_taken for num_tokens, is_taken in fitting if num_tokens <= measured.max_prompt_tokens
    )
    assert measured.max_prompt_tokens >= 10, "there is room for something"


def load_encoded(engine, request: Request) -> tuple[int, ...]:
    return engine.encode(request).prompt_ids


@pytest.mark.parametrize(
    ("kind", "max_cache_tokens", "params"),
    [
        ("gemma2", 150, SamplingParams(max_new_tokens=20)),  # windows: more tokens than places
        (
            "qwen3_5",
            200,
            SamplingParams(max_new_tokens=20),
        ),  # states, which take as many as some tokens
        (
            "led",
            200,
            SamplingParams(max_new_tokens=20, num_beams=3),
        ),  # what is encoded, for each row
        ("umt5", 200, SamplingParams(max_new_tokens=20)),
    ],
)
def test_the_longest_measured_prompt_is_the_longest_that_fits_the_cache(
    kind: str, max_cache_tokens: int, params: SamplingParams, folder_of
) -> None:
    engine = load(spec_of(folder_of(kind), max_cache_tokens=max_cache_tokens))
    request = Request(id=1, task="generate", params=params)
    longest = engine.measure(request).max_prompt_tokens
    assert longest > (max_cache_tokens if kind == "gemma2" else 10)
    settings = engine.encode(replace(request, text="mill")).settings
    limits = StepLimits.of(engine.sized.spec)
    assert limits.can_cache(engine.num_cache_tokens(settings, longest))
    assert not limits.can_cache(engine.num_cache_tokens(settings, longest + 1))
