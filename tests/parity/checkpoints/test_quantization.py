"""A packed checkpoint answers on a CPU as a float one of the very numbers that it stands for."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.weights.digests import weight_digests
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.checkpoints import packing
from tests.parity.trials.alone import Alone
from tests.running.engines import Bench


def spec_of(folder: Path, **settings) -> EngineSpec:
    return EngineSpec(**{"alias": "m", "checkpoint": str(folder), "device": "cpu", **settings})


def packed(kind: str, format_: str, folder_of, tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / format_
    return folder, packing.pack(folder_of(kind), folder, *packing.FORMATS[format_])


def set_packing(folder: Path, **values) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= values
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("format_", packing.FORMATS)
def test_packed_weights_unpack_to_exactly_their_numbers(format_, folder_of, tmp_path):
    folder, plain = packed("llama", format_, folder_of, tmp_path)
    found = Checkpoint.load(spec_of(folder))
    expected = load_file(plain / "model.safetensors")
    weights = dict(found.model.named_parameters())
    assert weights.keys() >= expected.keys()
    for name, weight in expected.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], weight), name
    num_packed = sum(bool(packing.PACKED.search(each)) for each in expected)
    assert found.card.weights.startswith(f"{num_packed} weights unpacked from ")
    assert "again" not in found.card.weights
    assert found.card.weight_files == weight_digests(folder)
    assert found.generation_config.eos_token_id == Alone("llama", plain).model.config.eos_token_id


@pytest.mark.parametrize("format_", ["gptq_act_order", "awq", "nf4_nested", "ct_int4", "fp8"])
def test_a_quantized_checkpoint_answers_in_flight_as_the_float_one_by_generate(
    format_, folder_of, tmp_path
):
    folder, plain = packed("llama", format_, folder_of, tmp_path)
    spec = spec_of(folder)
    engine = load(spec)
    assert isinstance(engine, RouterBackend)
    params = SamplingParams(max_new_tokens=9, min_new_tokens=9, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=text, params=params)
        for at, text in enumerate(checkpoints.sentences(6))
    ]
    outputs = Bench(engine, spec).answers(asked)
    alone = Alone("llama", plain)
    for each in asked:
        (expected,) = alone.generate(each.text, max_new_tokens=9, min_new_tokens=9, do_sample=False)
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize("format_", ["gptq", "fp8", "ct_int8", "nf4"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "mistral3", "qwen2_5_vl"])
def test_experts_and_the_text_of_multimodal_models_are_unpacked_too(
    kind, format_, folder_of, tmp_path
):
    folder, plain = packed(kind, format_, folder_of, tmp_path)
    names = load_file(folder / "model.safetensors").keys()
    own = names - load_file(plain / "model.safetensors").keys()
    assert any("experts" in each for each in own) == (kind == "qwen3_moe")
    found = Checkpoint.load(spec_of(folder)).model
    expected = Checkpoint.load(spec_of(plain)).model
    assert type(found) is type(expected)
    weights = dict(found.named_parameters())
    for name, weight in expected.named_parameters():
        assert torch.equal(weights[name], weight), name


def test_shards_of_bin_files_are_unpacked(folder_of, tmp_path):
    folder, plain = packed("llama", "gptq", folder_of, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {f"pytorch_model-0000{at + 1}-of-00002.bin": names[at::2] for at in range(2)}
    for file, held in parts.items():
        torch.save({name: weights[name] for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file in parts for name in parts[file]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = Checkpoint.load(spec_of(folder))
    assert set(found.card.weight_files) == set(parts)
    before = found.card.revision
    for name, weight in load_file(plain / "model.safetensors").items():
        assert torch.equal(found.model.get_parameter(name), weight)
    weights[names[0]] = weights[names[0]] * 0
    torch.save({name: weights[name] for name in parts[min(parts)]}, folder / min(parts))
    assert Checkpoint.load(spec_of(folder)).card.revision != before


def mxfp4(folder: Path, source: Path) -> dict[str, torch.Tensor]:
    """A gpt-oss as it is published. Returns the float weights of its experts."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    floats = {}
    for name in [each for each in weights if each.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_in, num_out = weights.pop(name).shape
        rows = (num_experts * num_out, num_in)
        codes = packing.drawn(name, rows, 16)
        exponents = packing.drawn(f"{name} scales", (rows[0], num_in // 32), 3) + 123
        values = np.array([[packing.FP4[each] for each in row] for row in codes.tolist()])
        values = values * (2.0 ** (exponents - 127)).repeat(32, axis=1)
        stood_for = torch.tensor(values.tolist()).view(num_experts, num_out, num_in)
        floats[name] = stood_for.transpose(1, 2).contiguous()
        pairs = [
            [row[at] + 16 * row[at + 1] for at in range(0, num_in, 2)] for row in codes.tolist()
        ]
        blocks = torch.tensor(pairs, dtype=torch.uint8)
        weights[f"{name}_blocks"] = blocks.view(num_experts, num_out, num_in // 32, 16)
        scales = torch.tensor(exponents.tolist(), dtype=torch.uint8)
        weights[f"{name}_scales"] = scales.view(num_experts, num_out, num_in // 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return floats


def test_the_experts_of_gpt_oss_are_unpacked(folder_of, tmp_path):
    folder = tmp_path / "mxfp4"
    floats = mxfp4(folder, folder_of("gpt_oss"))
    found = Checkpoint.load(spec_of(folder))
    assert floats
    for name, weight in floats.items():
        assert torch.equal(found.model.get_parameter(name), weight), name
    own = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=hf.Mxfp4Config(dequantize=True)
    )
    for name, weight in own.named_parameters():
        assert torch.equal(found.model.get_parameter(name), weight), name


@pytest.mark.parametrize("format_", ["fp8", "fp8_ue8m0", "mxfp8"])
def test_blocks_are_unpacked_as_transformers_unpacks_them(format_, folder_of, tmp_path):
    folder, _ = packed("llama", format_, folder_of, tmp_path)
    files = load_file(folder / "model.safetensors")
    found = Checkpoint.load(spec_of(folder)).model
    scaled = [each for each in files if f"{each}_scale_inv" in files]
    assert len(scaled) == 14
    for name in scaled:
        own = Fp8Dequantize(None)._dequantize_one(
            files[name], files[f"{name}_scale_inv"], output_dtype=torch.float32
        )
        assert torch.equal(found.get_parameter(name), own), name


def test_rounding_of_quantized_weights_is_reported(folder_of, tmp_path, caplog):
    folder, _ = packed("llama", "gptq", folder_of, tmp_path)
    card = Checkpoint.load(spec_of(folder, dtype="bfloat16")).card
    assert "14 weights unpacked from gptq to bfloat16, 14 rounded again to bfloat16" in card.weights
    assert "rounded twice" in caplog.text
    card = Checkpoint.load(spec_of(folder, quantization="int8")).card
    assert "then rounded to int8" in card.weights


def test_four_bits_of_a_float_are_whole_in_bfloat16(folder_of, tmp_path):
    folder, _ = packed("llama", "ct_mxfp4", folder_of, tmp_path)
    card = Checkpoint.load(spec_of(folder, dtype="bfloat16")).card
    assert card.weights == "14 weights unpacked from compressed-tensors to bfloat16"


@pytest.mark.parametrize(
    ("format_", "change", "words"),
    [
        ("gptq", {"bits": 3}, ["gptq", "3 bits", "gptqmodel optimum"]),
        ("awq", {"version": "gemv"}, ["awq", "'gemv'", "gptqmodel accelerate"]),
        ("awq", {"version": None, "format": "gemv"}, ["awq", "'gemv'"]),
        ("awq", {"backend": "llm-awq"}, ["awq", "'llm-awq'"]),
        ("gptq", {"checkpoint_format": "marlin"}, ["gptq", "'marlin'", "gptqmodel optimum"]),
        ("gptq", {"is_marlin_format": True}, ["gptq", "'marlin'"]),
        ("fp8_last_block_short", {"weight_block_size": [9, 9]}, ["blocks of 9", "fp8"]),
        ("ct_fp8_last_block_short", {"config_groups": {}}, ["scales for", "compressed-tensors"]),
        ("ct_int4", {"format": "marlin-24"}, ["marlin-24", "compressed-tensors accelerate"]),
        ("ct_int4", {"transform_config": {"config_groups": {"u": 1}}}, ["transform_config"]),
        ("gptq", {"quant_method": "hqq"}, ["hqq", "hqq accelerate"]),
        ("gptq", {"quant_method": "modelopt"}, ["modelopt", "transformers does not read"]),
    ],
)
def test_a_format_that_cannot_be_unpacked_is_refused_with_the_remedy(
    format_, change, words, folder_of, tmp_path
):
    folder, _ = packed("llama", format_, folder_of, tmp_path)
    set_packing(folder, **change)
    with pytest.raises(Unloadable) as refused:
        Checkpoint.load(spec_of(folder))
    for each in words:
        assert each in str(refused.value)
    assert "not packed" in str(refused.value)


def test_a_packed_weight_that_is_not_what_the_settings_say_is_named(folder_of, tmp_path):
    folder, _ = packed("llama", "gptq", folder_of, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in sorted(weights) if each.endswith("qzeros"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unloadable, match=name.removesuffix("qzeros")):
        Checkpoint.load(spec_of(folder))


@pytest.mark.parametrize(
    ("format_", "ending"),
    [("fp8", "_scale_inv"), ("ct_int8", "_scale"), ("ct_fp8", "_scale"), ("bnb_int8", ".SCB")],
)
def test_packed_numbers_without_their_scale_are_named(format_, ending, folder_of, tmp_path):
    folder, _ = packed("llama", format_, folder_of, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in sorted(weights) if each.endswith(ending))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    named = name.removesuffix(ending).removesuffix(".weight")
    with pytest.raises(Unloadable, match=rf"{named}.* without a scale"):
        Checkpoint.load(spec_of(folder))


@pytest.mark.parametrize("format_", ["gptq", "bnb_int8", "ct_fp8", "fp8", "nf4"])
def test_packed_weights_of_which_the_configuration_says_nothing_are_named(
    format_, folder_of, tmp_path
):
    folder, _ = packed("llama", format_, folder_of, tmp_path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(Unloadable, match=r"are packed, .* no quantization_config"):
        Checkpoint.load(spec_of(folder))


def test_a_layout_made_for_one_gpu_is_refused(folder_of, tmp_path):
    folder, _ = packed("llama", "bnb_int8", folder_of, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(each for each in sorted(weights) if each.endswith("weight_format"))
    weights[name] += 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unloadable, match="order for one kind of GPU"):
        Checkpoint.load(spec_of(folder))


def test_packing_is_made_by_other_code_than_unpacking():
    assert "engine.quantization" not in Path(packing.__file__).read_text()
    assert packing.__name__ in sys.modules
