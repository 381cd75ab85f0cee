"""A family that no list names runs in flight once its checkpoint was proved, and not otherwise."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.proof import verdicts
from engine.runners.causal import CausalRunner
from engine.runners.own_cache import OwnCacheRunner
from engine.runners.seq2seq import Seq2SeqRunner
from engine.runners.step_executor import FusedEncoderDecoder
from tests import checkpoints
from tests.checkpoints.proved_at_load import STATES_OF_THEIR_OWN
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import SETTINGS, let_join, requests, spec_of
from tests.running.engines import Bench

# Those whose attention is not the usual one, which run by their own attention and cache.
BY_OWN_CACHE = {
    "bloom": "attends by code of its own",
    "mpt": "attends by code of its own",
    "gptj": "attends by code of its own",
    "falcon": "does not attend by the interface",
    "falcon_alibi": "of a kind of its own",
    "deepseek_v2": "keys are of another size than its values",
    "deepseek_v3": "keys are of another size than its values",
    "longcat": "keys are of another size than its values",
    "umt5": "have other logits",  # a bias of its own in each layer
    "longt5": "are others than by",
    "pegasus_x": "are others than by",
    "longt5_global": "are others than by",
    "t5gemma2": "attends to the encoder by parts of its own",
    "mvp": "attends by code of its own",
    "led": "attends by code of its own",
    "fsmt": "attends by code of its own",
    "prophetnet": "attends by code of its own",
    "seamless": "attends to the encoder by parts of its own",
    "switch": "leaves the model changed",  # by a note of its router
    **dict.fromkeys(
        ("bart_decoder", "mbart_decoder", "marian_decoder", "pegasus_decoder"),
        "takes no position_ids",
    ),
    # Recurrent layers, alone or beside attention.
    **dict.fromkeys(("mamba", "falcon_mamba", "mamba2"), "attends by code of its own"),
    **dict.fromkeys(
        (
            "jamba",
            "bamba",
            "granite_hybrid",
            "zamba2",
            "nemotron_h",
            "lfm2",
            "lfm2_moe",
            "lfm3",
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_moe",
            "olmo_hybrid",
            "kimi_linear",
        ),
        "its layers are not counted one by one",
    ),
    **dict.fromkeys(("falcon_h1", "zamba", "zaya"), "have other logits"),
    "llama4": "have other logits",  # attention in chunks
}


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", checkpoints.UNLISTED)
def test_a_family_that_no_list_names_answers_in_flight_as_alone(kind, folder_of):
    spec = spec_of(folder_of(kind), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    # As many as there is time for, and at least six.
    assert re.match(r"proved at load: (\d+) of \1 requests", engine.card.engine_reason)
    if kind in BY_OWN_CACHE:
        assert isinstance(engine.in_flight.runner, OwnCacheRunner)
        _, _, reason = engine.card.engine_reason.partition("by its own attention and cache, for ")
        assert BY_OWN_CACHE[kind] in reason
    else:
        assert isinstance(engine.in_flight.runner, CausalRunner | Seq2SeqRunner)
        reason = engine.card.engine_reason.removesuffix(" (at an earlier start)")
        assert reason.endswith("; by the fast way")
        if kind == "t5gemma":
            assert_fused(engine.in_flight.runner.executor)
    engine.in_flight.runner.kv_cache.poisoned = True
    bench = Bench(engine, spec)
    asked = requests()[:10]  # two of every setting, after those of the proof
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == len(outputs) == 10
    assert max(len(plan.sequences) for plan in bench.plans) > 2
    alone = Alone(kind, folder_of(kind))
    for each in asked:
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        found = [list(choice.token_ids) for choice in outputs[each.id].choices]
        assert outputs[each.id].failure is None
        assert found == expected, f"{kind} {each.id}"
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 5


def assert_fused(executor: object) -> None:
    assert isinstance(executor, FusedEncoderDecoder)
    assert executor.fused_encoder is not None
    assert executor.fused_step is not None


@pytest.mark.parametrize("kind", STATES_OF_THEIR_OWN)
def test_states_in_a_models_own_form_are_joined(kind, folder_of):
    spec = spec_of(folder_of(kind), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert engine.card.engine_reason.endswith("; beams by model.generate")
    bench = Bench(engine, spec)
    asked = [each for each in requests() if each.params.num_beams is None]
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == len(outputs) == 12
    assert max(len(plan.sequences) for plan in bench.plans) > 2
    alone = Alone(kind, folder_of(kind))
    for each in asked:
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 8


@pytest.mark.parametrize("kind", ["minimax", "recurrent_gemma"])
def test_beams_run_by_generate_where_states_cannot_be_reordered(
    kind, folder_of, tmp_path, monkeypatch
):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path))
    spec = spec_of(folder_of(kind))
    (asked,) = (each for each in requests() if each.id == 2)
    expected = Alone(kind, folder_of(kind)).generate(asked.text, **SETTINGS[2])
    for again in (False, True):
        engine = load(spec)
        assert engine.card.engine_reason.endswith("(at an earlier start)") == again
        bench = Bench(engine, spec)
        output = bench.answers([asked])[2]
        assert (bench.progress.num_in_flight, bench.progress.num_by_generate) == (0, 1)
        assert [list(choice.token_ids) for choice in output.choices] == expected


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    ],
)
def test_an_odd_configuration_of_a_listed_family_is_proved_too(kind, own, folder_of, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | own
    config.pop("layer_types", None)
    path.write_text(json.dumps(config))
    engine = load(spec_of(folder, engine="inflight"))
    assert isinstance(engine, RouterBackend)
    assert isinstance(engine.in_flight.runner, CausalRunner)
