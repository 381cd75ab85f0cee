"""The result of a proof: the way in flight, its report, and the verdict that the next start
reuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from engine.backends import generate, proved_router
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.kv_cache.own_cache.joined import JoinedSequenceCache
from engine.proof import answered_alone, batch_probe, verdicts
from engine.proof.logit_distance import MAX_DISTANCE, max_distance
from engine.proof.self_proof import prove
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.runners.causal import CausalRunner
from engine.runners.own_cache import OwnCacheRunner
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.faults import roll_rows
from tests.parity.trials.joining import SETTINGS, let_join, requests, spec_of
from tests.running.engines import Bench


@pytest.mark.parametrize("why_alone", [None, "nobody knows"])
def test_the_slower_way_is_used_where_the_fast_one_fails(
    why_alone, folder_of, tmp_path, monkeypatch
):
    monkeypatch.setattr(generate, "why_not_batched", lambda *_: why_alone)
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    asked = []
    whole = answered_alone.answer_alone
    monkeypatch.setattr(
        answered_alone, "answer_alone", lambda *given: asked.append(given) or whole(*given)
    )
    monkeypatch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
    spec = spec_of(folder_of("granite"))
    for again in (False, True):
        engine = load(spec)
        assert isinstance(engine, RouterBackend)
        assert isinstance(engine.in_flight.runner, OwnCacheRunner)
        assert "by its own attention and cache, for " in engine.card.engine_reason
        assert ("at an earlier start" in engine.card.engine_reason) == again
        # The model is as it was loaded.
        assert engine.checkpoint.model.config._attn_implementation == "sdpa"
    assert len(asked) == 18  # for both ways


def test_a_request_by_generate_leaves_the_fast_ways_attention_installed(folder_of, monkeypatch):
    """If calls are not shared, the model is reset to its state after loading."""
    monkeypatch.setattr(generate, "why_not_batched", lambda *_: "nobody knows")
    spec = spec_of(folder_of("granite"), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine.in_flight.runner, CausalRunner)
    bench = Bench(engine, spec)
    drawn = SamplingParams(max_new_tokens=4, do_sample=True, seed=1, num_beams=2)
    bench.answers([Request(id=100, task="generate", text="river", params=drawn)])
    assert bench.progress.num_by_generate == 1
    outputs = let_join(bench, requests())
    assert bench.progress.num_in_flight == 15
    alone = Alone("granite", folder_of("granite"))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


# Half precision, and a second start


def test_in_half_precision_logits_are_held_to_a_bound_and_the_agreement_is_said(folder_of):
    engine = load(spec_of(folder_of("olmo2"), dtype="bfloat16"))
    assert isinstance(engine, RouterBackend)
    assert "of 18 requests answered in flight" in engine.card.engine_reason
    bound = max_distance(engine.checkpoint.model)
    assert MAX_DISTANCE < 2**-8 < bound < 0.3


def test_a_second_start_takes_the_verdict_of_the_first(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    folder = tmp_path / "phi"
    shutil.copytree(folder_of("phi"), folder)
    spec = spec_of(folder)
    assert "at an earlier start" not in load(spec).card.engine_reason
    with monkeypatch.context() as patch:
        patch.setattr(proved_router, "prove", lambda *_: pytest.fail("it was proved again"))
        again = load(spec)
        assert isinstance(again, RouterBackend)
        assert again.card.engine_reason.endswith("(at an earlier start)")
    # Other weights are another checkpoint, whose verdict is its own.
    proofs = []
    monkeypatch.setattr(
        proved_router, "prove", lambda *given: proofs.append(given) or prove(*given)
    )
    model = checkpoints.hf.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    model.save_pretrained(folder)
    load(spec)
    load(replace(spec, dtype="bfloat16"))
    assert len(proofs) == 2


def test_a_refusal_is_kept_as_well(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    with monkeypatch.context() as patch:
        patch.setattr(CausalRunner, "_decode_forward", roll_rows(CausalRunner._decode_forward))
        patch.setattr(JoinedSequenceCache, "reorder", lambda *_: None)
        reasons = [load(spec_of(folder_of("phi"))).card.engine_reason]
    monkeypatch.setattr(proved_router, "prove", lambda *_: pytest.fail("it was tried again"))
    reasons.append(load(spec_of(folder_of("phi"))).card.engine_reason)
    assert reasons[0] == reasons[1]
    assert "was not proved at load" in reasons[0]


def test_a_slow_model_is_proved_with_few_passes(folder_of, monkeypatch):
    """A pass of a large model is slow on a CPU, and a proof may take only seconds."""
    passes = []
    embeddings = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: passes.append(module) if isinstance(module, torch.nn.Embedding) else None
    )
    spec = spec_of(folder_of("granite"), cpu_kernels=False)
    num_passes = {}
    try:
        for slow in (False, True):
            monkeypatch.setattr(answered_alone, "SLOW_PASS_SECONDS", 0.0 if slow else 60.0)
            monkeypatch.setattr(batch_probe, "SLOW_PASS_SECONDS", 0.0 if slow else 60.0)
            # As for a model so slow that the time is over after the minimum of requests.
            monkeypatch.setattr(answered_alone, "MAX_SECONDS", 0.0)
            passes.clear()
            engine = load(spec)
            assert isinstance(engine, RouterBackend)
            assert "6 of 6 requests" in engine.card.engine_reason
            num_passes[slow] = len(passes)
    finally:
        embeddings.remove()
    # A third of these are of the probe of shared calls; no answer is computed twice.
    assert 20 < num_passes[True] <= 42
    assert num_passes[True] < 0.7 * num_passes[False]


@pytest.mark.parametrize("content", ["", '{"why_not": nul', "{}", "[]", '{"why_not": null}'])
def test_a_truncated_verdict_is_ignored(content, folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path))
    spec = spec_of(folder_of("phi"))
    load(spec)
    (kept,) = (tmp_path / "proofs").iterdir()
    whole = kept.read_text()
    kept.write_text(content)
    assert "at an earlier start" not in load(spec).card.engine_reason
    assert kept.read_text() == whole
    assert list((tmp_path / "proofs").iterdir()) == [kept]


def test_a_verdict_that_cannot_be_kept_is_said_in_one_line(
    folder_of, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").touch()  # a file in place of a folder
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "file"))
    assert isinstance(load(spec_of(folder_of("phi"))), RouterBackend)
    assert len([each for each in caplog.messages if "verdict not kept" in each]) == 1


@pytest.mark.parametrize(
    "change",
    ["weights", "config", "generation_config", "dtype", "kernels", "transformers"],
)
def test_a_verdict_holds_for_its_own_key_only(change, folder_of, tmp_path):
    folder = tmp_path / "phi"
    shutil.copytree(folder_of("phi"), folder)
    spec = spec_of(folder)
    before = Checkpoint.load(spec)
    key = verdicts.key_of(spec, before)
    assert key == verdicts.key_of(spec, Checkpoint.load(spec))
    if change == "weights":
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif change in ("config", "generation_config"):
        name = "layer_norm_eps" if change == "config" else "repetition_penalty"
        path = folder / f"{change}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: 1.5}))
    elif change == "dtype":
        spec = replace(spec, dtype="bfloat16")
    elif change == "kernels":
        spec = replace(spec, cpu_kernels=False)
    after = Checkpoint.load(spec)
    if change == "transformers":
        versions = {**after.card.versions, "transformers": "0"}
        after = replace(after, card=replace(after.card, versions=versions))
    assert verdicts.key_of(spec, after) not in (key, None)
