"""Settings of a checkpoint's own generation configuration, in flight as by `generate`."""

from __future__ import annotations

import json
import shutil

import pytest

from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import (
    request,
    seen_by,
)


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "inflight"


@pytest.mark.parametrize(
    ("own", "in_flight"),
    [
        ({}, True),
        ({"bad_words_ids": [[7], [9, 11]], "min_length": 5}, True),
        ({"suppress_tokens": list(range(5, 200))}, True),
        ({"begin_suppress_tokens": list(range(5, 200))}, True),
        ({"exponential_decay_length_penalty": [3, 1.5]}, True),
        ({"renormalize_logits": True}, True),
        ({"renormalize_logits": True, "repetition_penalty": 1.7}, True),
        ({"encoder_repetition_penalty": 1.3}, True),
        ({"encoder_no_repeat_ngram_size": 1}, True),
        ({"remove_invalid_values": True}, True),
        ({"sequence_bias": [[[7], 4.0], [[9, 11], -4.0]]}, True),
        ({"cache_implementation": "dynamic"}, True),
        ({"max_time": 600.0}, False),
    ],
)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
    ],
    ids=["greedy", "beams"],
)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_setting_of_the_checkpoint_is_never_dropped(
    kind, how, own, in_flight, bench_of, folder_of, tmp_path
):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    bench, alone = bench_of(kind, checkpoint=str(folder)), Alone(kind, folder)
    params = SamplingParams(max_new_tokens=12, **how)
    requests = [
        request(at, text, params=params) for at, text in enumerate(checkpoints.sentences(5))
    ]
    outputs = bench.answers(requests)
    assert {not each.runs_to_completion for each in seen_by(bench)} == {in_flight}
    ways = (bench.progress.num_in_flight, bench.progress.num_by_generate)
    assert ways == ((5, 0) if in_flight else (0, 5))
    said = bench.loop.engine.card.engine_reason
    assert "proved" in said if in_flight else all(name in said for name in own)
    for each in requests:
        (expected,) = alone.generate(each.text, max_new_tokens=12, **how)
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize(
    "own",
    [
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"epsilon_cutoff": 0.02},
        {"eta_cutoff": 0.02},
        {"top_h": 0.4},
        {"renormalize_logits": True, "temperature": 1.7, "top_p": 0.8},
    ],
)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_checkpoints_own_sampling_settings_act_as_in_generate(
    kind, own, bench_of, folder_of, tmp_path
):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    bench, alone = bench_of(kind, checkpoint=str(folder)), Alone(kind, folder)
    how = {"max_new_tokens": 12, "do_sample": True}
    requests = [
        request(at, text, params=SamplingParams(seed=at, **how))
        for at, text in enumerate(checkpoints.sentences(5))
    ]
    outputs = bench.answers(requests)
    assert not any(each.runs_to_completion for each in seen_by(bench))
    for each in requests:
        (expected,) = alone.generate(each.text, seed=each.id, **how)
        assert list(outputs[each.id].choices[0].token_ids) == expected
