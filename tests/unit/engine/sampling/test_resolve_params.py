from dataclasses import fields

import pytest

from engine.errors import OutputTooLong, PromptTooLong, UnsupportedParameter
from engine.protocol.sampling_params import PARAMS, SamplingParams
from engine.sampling.resolve_params import (
    DEFAULT_MAX_NEW_TOKENS,
    AnswerLimits,
    ResolvedParams,
    resolve,
)

PROMPT = AnswerLimits(
    num_before=10, max_context_tokens=50
)  # a decoder-only model, ten tokens asked
START = AnswerLimits(num_before=1, max_context_tokens=50)  # an encoder-decoder
ENDLESS = AnswerLimits(num_before=1, max_context_tokens=None)


def settings(params=None, own=None, limits=ENDLESS):
    return resolve(params or SamplingParams(), own or {}, limits, fresh_seed=99)


def test_a_request_without_any_length_gets_ours_and_not_the_librarys_twenty():
    assert settings().max_new_tokens == DEFAULT_MAX_NEW_TOKENS


@pytest.mark.parametrize(
    ("params", "limits", "own", "max_new_tokens"),
    [
        (SamplingParams(max_new_tokens=7), ENDLESS, {"max_length": 30}, 7),
        (SamplingParams(max_length=30), PROMPT, {}, 20),  # the prompt counts
        (SamplingParams(max_length=30), START, {}, 29),  # so does the start token
        (
            SamplingParams(),
            AnswerLimits(num_before=1, max_context_tokens=None, max_new_tokens=5),
            {},
            5,
        ),
        (SamplingParams(), ENDLESS, {"max_new_tokens": 12, "max_length": 30}, 12),
        (SamplingParams(), START, {"max_length": 30}, 29),
        (SamplingParams(), PROMPT, {"max_length": 30}, 20),
        (
            SamplingParams(),
            PROMPT,
            {"max_length": 10},
            40,
        ),  # its whole length is used up: what is left
        (SamplingParams(), PROMPT, {}, 40),
        (SamplingParams(), PROMPT, {"max_new_tokens": 100}, 40),  # a default is cut, not refused
    ],
)
def test_an_answer_is_limited_by_request_settings_and_context(params, limits, own, max_new_tokens):
    assert settings(params, own, limits).max_new_tokens == max_new_tokens


def test_a_length_beyond_the_context_is_refused_with_numbers():
    with pytest.raises(OutputTooLong, match="max_new_tokens asks for 41 tokens; at most 40"):
        settings(SamplingParams(max_new_tokens=41), limits=PROMPT)
    with pytest.raises(OutputTooLong, match="max_length asks for 51 tokens; at most 50"):
        settings(SamplingParams(max_length=51), limits=PROMPT)


def test_a_max_length_that_the_prompt_uses_up_is_refused_with_a_remedy():
    with pytest.raises(PromptTooLong, match=r"10 tokens.*use max_new_tokens"):
        settings(SamplingParams(max_length=10), limits=PROMPT)


def test_the_job_wins_over_the_checkpoint_which_wins_over_what_is_neutral():
    own = {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 8}
    got = settings(SamplingParams(num_beams=2, repetition_penalty=1.2), own)
    assert (got.num_beams, got.length_penalty, got.no_repeat_ngram_size) == (2, 2.0, 3)
    assert (got.repetition_penalty, got.min_new_tokens, got.top_k) == (1.2, 7, 50)


def test_a_minimum_counts_new_tokens_whoever_names_it():
    assert settings(own={"min_length": 30}, limits=PROMPT).min_new_tokens == 20
    assert settings(own={"min_length": 5}, limits=PROMPT).min_new_tokens == 0
    assert (
        settings(SamplingParams(min_new_tokens=3), {"min_length": 30}, PROMPT).min_new_tokens == 3
    )


@pytest.mark.parametrize(
    ("params", "own", "do_sample"),
    [
        (SamplingParams(), {}, False),
        (SamplingParams(), {"do_sample": True}, True),
        (SamplingParams(do_sample=False), {"do_sample": True}, False),
        (SamplingParams(temperature=0.7), {}, True),
        (SamplingParams(top_p=0.9), {}, True),
        (SamplingParams(temperature=0), {"do_sample": True}, False),
        (SamplingParams(seed=1), {}, False),
    ],
)
def test_an_answer_is_sampled_if_the_job_or_the_checkpoint_says_so(params, own, do_sample):
    assert settings(params, own).do_sample is do_sample


def test_a_sample_has_a_seed_and_says_it():
    assert settings(SamplingParams(do_sample=True)).seed == 99
    assert settings(SamplingParams(do_sample=True, seed=0)).to_json()["seed"] == 0
    assert "seed" not in settings(SamplingParams(seed=3)).to_json()


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (SamplingParams(max_new_tokens=5, max_length=9), "max_length"),
        (SamplingParams(num_return_sequences=2), "num_return_sequences"),
        (SamplingParams(num_return_sequences=3, num_beams=2), "num_return_sequences"),
        (SamplingParams(temperature=0.5, do_sample=False), "temperature"),
        (SamplingParams(temperature=0, do_sample=True), "temperature"),
        (SamplingParams(min_new_tokens=9, max_new_tokens=5), "min_new_tokens"),
    ],
)
def test_a_contradiction_is_refused_by_name(params, named):
    with pytest.raises(UnsupportedParameter) as refused:
        settings(params)
    assert str(refused.value).startswith(named)
    assert refused.value.code == "unsupported_parameter"


def test_rows_are_beams_or_answers():
    assert settings(SamplingParams(num_beams=4, num_return_sequences=2)).num_rows == 4
    assert settings(SamplingParams(do_sample=True, num_return_sequences=3)).num_rows == 3


def test_settings_that_cannot_matter_are_left_out():
    greedy = settings(SamplingParams(max_new_tokens=5)).to_json()
    assert greedy == {
        "max_new_tokens": 5,
        "min_new_tokens": 0,
        "do_sample": False,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_return_sequences": 1,
    }
    assert settings(SamplingParams(num_beams=2, stop=("a",))).to_json()["stop"] == ["a"]


def test_every_parameter_of_a_request_is_resolved():
    # `max_length` comes to max_new_tokens, which is what is left of it behind the prompt.
    resolved = {each.name for each in fields(ResolvedParams)}
    assert resolved == set(PARAMS) - {"max_length"}
