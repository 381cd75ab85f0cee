"""What cannot be served is refused at load, by name; what can is served as its files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.weights import layout
from engine.errors import TokenOutOfRange, Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.text.detokenizer import text_of
from tests import checkpoints
from tests.checkpoints.shards import as_shards


def spec_of(folder: Path, **more: Any) -> EngineSpec:
    return EngineSpec(alias="m", checkpoint=str(folder), device="cpu", **more)


@pytest.fixture(params=["gpt2", "bart", "t5", "marian", "opt"])
def folder(request, tmp_path: Path) -> Path:
    checkpoints.KINDS[request.param](tmp_path)
    return tmp_path


def change(folder: Path, how) -> None:
    weights = how(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_in(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(folder: Path) -> str:
    with pytest.raises(Unloadable) as refused:
        Checkpoint.load(spec_of(folder))
    return str(refused.value)


def learned(weights: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(weights) if weights[name].ndim == 2 and ".1." in name)


def test_a_whole_checkpoint_is_served(folder):
    Checkpoint.load(spec_of(folder))


def test_a_prefix_of_every_key_is_refused(folder):
    change(folder, lambda weights: {f"module.{name}": each for name, each in weights.items()})
    said = refusal(folder)
    assert "lack" in said
    assert "beyond the configuration" in said
    assert "module." in said
    assert "save_pretrained" in said


@pytest.mark.parametrize("as_bin", [False, True])
def test_an_absent_weight_is_named(folder, as_bin):
    weights = load_file(folder / "model.safetensors")
    absent = learned(weights)
    del weights[absent]
    if as_bin:
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"lack 1 ({absent})" in refusal(folder)


def test_a_weight_of_another_shape_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = learned(weights)
    change(folder, lambda weights: weights | {name: weights[name][:-1].contiguous()})
    said = refusal(folder)
    assert f"{name}: " in said
    assert "in another shape 1" in said


def test_a_weight_that_is_not_a_number_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = learned(weights)
    weights[name][0, 0] = torch.nan
    change(folder, lambda _: weights)
    assert f"NaN or infinity ({name})" in refusal(folder)


def test_layers_beyond_the_configuration_are_refused(tmp_path):
    checkpoints.gpt2(tmp_path)
    set_in(tmp_path / "config.json", n_layer=1)
    # GPT-2 itself declares the ending of one of the twelve names ignorable.
    assert re.search(r"beyond the configuration 1[12] \(transformer\.h\.1\.", refusal(tmp_path))


def test_tables_that_are_computed_do_no_harm(tmp_path):
    checkpoints.gpt2(tmp_path)
    tables = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
    tables["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    change(tmp_path, lambda weights: weights | tables)
    Checkpoint.load(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("penalty_alpha", 0.6), ("num_beam_groups", 2), ("diversity_penalty", 0.5),
        ("force_words_ids", [[3]]), ("dola_layers", "high"), ("token_healing", True),
        ("eos_token_id", 10**6), ("forced_bos_token_id", 10**6), ("pad_token_id", 10**6),
        ("decoder_start_token_id", 10**6), ("decoder_start_token_id", -1),
        ("bad_words_ids", [[10**6]]), ("suppress_tokens", [10**6]),
        ("sequence_bias", [[[5, 10**6], 2.0]]), ("sequence_bias", [[[5], "much"]]),
        ("decoder_start_token_id", [2, 2]),
        ("cache_implementation", "quantized"), ("cache_implementation", "paged"),
        ("cache_implementation", "nonsense"), ("compile_config", {"fullgraph": True}),
        ("min_p", 7.0), ("assistant_early_exit", 1),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_run_is_refused_by_name(tmp_path, name, value):
    checkpoints.bart(tmp_path)
    set_in(tmp_path / "generation_config.json", **{name: value})
    said = refusal(tmp_path)
    assert name in said
    assert "generation_config.json" in said


def test_a_generation_setting_within_bounds_is_accepted(tmp_path):
    checkpoints.bart(tmp_path)
    own = {"sequence_bias": [[[5, 7], 1000.0]], "cache_implementation": "static"}
    set_in(tmp_path / "generation_config.json", **own)
    assert Checkpoint.load(spec_of(tmp_path)).own["sequence_bias"] == [[[5, 7], 1000.0]]


@pytest.mark.parametrize("kind", ["bart", "t5", "marian"])
def test_a_decoder_without_a_start_is_refused_by_name(tmp_path, kind):
    checkpoints.KINDS[kind](tmp_path)
    no_start = {"decoder_start_token_id": None, "bos_token_id": None}
    set_in(tmp_path / "generation_config.json", **no_start)
    assert "neither decoder_start_token_id nor bos_token_id" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_generation_config_that_cannot_be_read_is_named(tmp_path, text):
    checkpoints.gpt2(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    said = refusal(tmp_path)
    assert "generation_config.json" in said
    assert "weights" not in said


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    """SMaLL-100: M2M100's weights and vocabulary, with the target's code before the source."""
    checkpoints.m2m100(tmp_path)
    Checkpoint.load(spec_of(tmp_path))
    set_in(tmp_path / "tokenizer_config.json", tokenizer_class="SMALL100Tokenizer")
    said = refusal(tmp_path)
    assert "SMALL100Tokenizer" in said


def test_a_tokenizer_that_leaves_out_the_source_is_refused(tmp_path, monkeypatch):
    checkpoints.m2m100(tmp_path)
    own = hf.M2M100Tokenizer.set_src_lang_special_tokens
    monkeypatch.setattr(  # what SMaLL-100's own code does
        hf.M2M100Tokenizer, "set_src_lang_special_tokens", lambda self, _: own(self, "fr")
    )
    assert "does not put the code of the source language" in refusal(tmp_path)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_shards_are_held_against_the_model(tmp_path, kind, as_bin, quantization):
    faults = {"whole": None, "lack 1": "absent", "beyond the configuration 1": "extra",
              "in another shape 1": "misshapen"}  # fmt: skip
    for at, (said, fault) in enumerate(faults.items()):
        folder = tmp_path / str(at)
        folder.mkdir()
        checkpoints.KINDS[kind](folder)
        weights = load_file(folder / "model.safetensors")
        name = learned(weights)
        if fault == "absent":
            del weights[name]
        elif fault == "extra":
            weights["nobody.knows.weight"] = torch.ones(2, 2)
        elif fault == "misshapen":
            weights[name] = weights[name][:-1].contiguous()
        as_shards(folder, weights, as_bin)
        spec = spec_of(folder, quantization=quantization)
        if fault is None:
            load(spec)
            continue
        with pytest.raises(Unloadable, match=said) as refused:
            load(spec)
        assert ("nobody.knows" if fault == "extra" else name) in str(refused.value)


def test_a_token_beyond_the_embedding_fails_its_request_with_the_range(tmp_path):
    checkpoints.gpt2(tmp_path)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    num_ids = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    engine = GenerateBackend.load(spec_of(tmp_path))
    assert engine.checkpoint.pad_token_id < engine.checkpoint.num_ids
    asked = Request(
        id=0, task="generate", text="a mill [PAD]", params=SamplingParams(max_new_tokens=2)
    )
    with pytest.raises(TokenOutOfRange, match=f"ids 0 to {num_ids - 1}"):
        engine.encode(asked)


def test_an_id_without_a_token_leaves_the_rest_of_the_answer(tmp_path):
    checkpoints.marian(tmp_path)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the mill")["input_ids"]
    beyond = len(tokenizer) + 5
    assert text_of(tokenizer, [*ids, beyond]) == text_of(tokenizer, ids) != ""


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([[5, 9, 3, 7, 2]])).logits


WIDE = {
    "mamba": lambda n: hf.MambaConfig(
        vocab_size=n, hidden_size=256, num_hidden_layers=2, time_step_rank=128
    ),
    "falcon_mamba": lambda n: hf.FalconMambaConfig(
        vocab_size=n, hidden_size=256, num_hidden_layers=2
    ),
    "rwkv": lambda n: hf.RwkvConfig(
        vocab_size=n, hidden_size=256, num_hidden_layers=8, rescale_every=2
    ),
}


def wide(kind: str, folder: Path) -> None:
    checkpoints.gpt2(folder)
    num_ids = len(hf.AutoTokenizer.from_pretrained(folder))
    (folder / "generation_config.json").unlink()
    torch.manual_seed(0)
    config = WIDE[kind](num_ids)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = 0
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_rounding_that_a_model_cannot_bear_is_refused(tmp_path):
    wide("mamba", tmp_path)
    with pytest.raises(Unloadable, match=r'mamba model .* use quantization = "none"'):
        load(spec_of(tmp_path, quantization="int8"))


def test_bfloat16_is_refused_where_the_processor_does_not_multiply_it(tmp_path, monkeypatch):
    checkpoints.build("llama", tmp_path)
    monkeypatch.setattr(layout, "has_bfloat16_products", lambda: False)
    with pytest.raises(Unloadable, match=r'this processor .* use quantization = "int8"'):
        load(spec_of(tmp_path, quantization="bfloat16"))


@pytest.mark.parametrize("kind", ["jamba", "longcat"])
def test_a_family_that_reads_its_weights_answers_as_generate(kind, tmp_path):
    checkpoints.build(kind, tmp_path)
    engine = load(spec_of(tmp_path))
    expected = logits(hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    assert torch.allclose(logits(engine.checkpoint.model), expected, rtol=1e-3, atol=1e-4)


def test_weights_that_a_forward_divides_are_divided_once(tmp_path):
    checkpoints.rwkv_rescaled(tmp_path)
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = logits(model)
    assert torch.equal(logits(model), expected)
    engine = load(spec_of(tmp_path))
    for _ in range(3):
        with torch.inference_mode():
            engine.freshness.restore()
        assert torch.allclose(logits(engine.checkpoint.model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", WIDE)
def test_a_model_that_reads_its_weights_says_the_same(kind, tmp_path):
    wide(kind, tmp_path)
    expected = logits(hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    engine = load(spec_of(tmp_path))
    assert torch.allclose(logits(engine.checkpoint.model), expected, rtol=1e-3, atol=1e-4)


def test_a_wide_model_is_laid_out(tmp_path):
    checkpoints.gpt2(tmp_path)
    checkpoints.with_heads_of_32(tmp_path)
    model = load(spec_of(tmp_path)).checkpoint.model
    kinds = {type(each).__name__ for each in model.modules()}
    assert kinds & {"PackedGemmLinear", "PackedLinear"}
