"""Of a checkpoint that is published as multimodal the text part is loaded, and says what the whole
says of text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.errors import Unloadable
from engine.protocol.request import Request
from tests import checkpoints
from tests.checkpoints.multimodal import phi4_multimodal
from tests.checkpoints.shards import as_shards
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import SETTINGS, requests_for, spec_of
from tests.running.engines import Bench

# The classes that run them: a text model of the library's, or else a head on the decoder.
CLASSES = {
    "gemma3_vision": "Gemma3ForCausalLM", "mistral3": "MistralForCausalLM",
    "llava": "LlamaForCausalLM", "llama4_vision": "Llama4ForCausalLM", "qwen2_vl": "TextWithHead",
    "llava_next": "LlamaForCausalLM", "glm4v": "TextWithHead", "qwen3_vl_moe": "TextWithHead",
    "qwen2_audio": "Qwen2ForCausalLM", "qwen2_5_vl": "TextWithHead", "qwen3_vl": "TextWithHead",
    "qwen3_5_vision": "Qwen3_5ForCausalLM",
    # Its whole reads the mark of an image as no token, which its text model does not.
    "gemma4_vision": "Gemma4ForConditionalGeneration",
}  # fmt: skip
SEES = re.compile(r"vision|visual|audio|projector|image_newline")


def requests() -> list[Request]:
    return requests_for(checkpoints.sentences(10, seed=3))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def write(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    kept = {name: each.clone() for name, each in weights.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def answers(engine) -> list[list[int]]:
    """To ten short prompts, greedy, one by one."""
    model, tokenizer = engine.model, engine.tokenizer
    rows = []
    for text in checkpoints.sentences(4, seed=8):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        own = hf.GenerationConfig(max_new_tokens=8, min_new_tokens=8, do_sample=False)
        rows.append(model.generate(ids, attention_mask=mask, generation_config=own)[0].tolist())
    return rows


@pytest.mark.parametrize("kind", checkpoints.MULTIMODAL)
def test_text_is_answered_as_by_the_whole_model(kind, folder_of):
    spec = spec_of(folder_of(kind), max_sequences=8)
    engine = load(spec)
    assert type(engine.checkpoint.model).__name__ == CLASSES[kind]
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    bench = Bench(engine, spec)
    waiting, outputs = requests(), {}
    while waiting:
        bench.submit(*waiting[:2])
        waiting = waiting[2:]
        bench.advance()
    outputs = {each.request_id: each for each in bench.finish()}
    alone = Alone(kind, folder_of(kind))
    for each in requests():
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert outputs[each.id].failure is None
        found = [list(choice.token_ids) for choice in outputs[each.id].choices]
        assert found == expected, f"{kind} {each.id}"
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 5
    seeing = [each for name, each in alone.model.named_parameters() if SEES.search(name)]
    assert seeing
    num_seeing = sum(each.numel() for each in seeing)
    num_whole = sum(each.numel() for each in alone.model.parameters())
    assert engine.card.num_parameters == num_whole - num_seeing
    assert engine.card.model_type == alone.model.config.model_type


@pytest.mark.parametrize("kind", ["mistral3", "qwen2_5_vl", "gemma4_vision", "llama4_vision"])
def test_vision_weights_are_not_read(kind, folder_of, tmp_path):
    """Weights that would be refused, were they looked at."""
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    weights = weights_of(folder)
    spoiled = [name for name in weights if SEES.search(name)]
    assert spoiled
    write(folder, weights | {name: weights[name] * torch.nan for name in spoiled})
    expected = answers(Checkpoint.load(spec_of(folder_of(kind))))
    assert answers(Checkpoint.load(spec_of(folder))) == expected
    del weights[spoiled[0]]
    write(folder, weights)
    assert answers(Checkpoint.load(spec_of(folder))) == expected


def test_vision_and_audio_weights_within_a_decoder_are_not_read(tmp_path):
    phi4_multimodal(tmp_path)
    alone = Alone("phi4_multimodal", tmp_path)
    text = checkpoints.sentences(1, seed=8)[0]
    expected = alone.generate(text, max_new_tokens=8, do_sample=False)
    towers = ("image_embed.img_processor.", "audio_embed.encoder.")
    weights = weights_of(tmp_path)
    spoiled = [name for name in weights if any(each in name for each in towers)]
    assert len({each for each in towers for name in spoiled if each in name}) == 2
    write(tmp_path, weights | {name: weights[name] * torch.nan for name in spoiled})
    found = Checkpoint.load(spec_of(tmp_path))
    assert not any(each in name for name, _ in found.model.named_modules() for each in towers)
    alone.model = found.model
    found.model.generation_config = found.generation_config
    assert alone.generate(text, max_new_tokens=8, do_sample=False) == expected


@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize("kind", ["gemma3_vision", "qwen3_vl"])
def test_shards_and_bin_files_are_read_alike(kind, as_bin, folder_of, tmp_path):
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    files = as_shards(folder, weights_of(folder), as_bin)
    found = Checkpoint.load(spec_of(folder))
    assert set(found.card.weight_files) == set(files)
    assert answers(found) == answers(Checkpoint.load(spec_of(folder_of(kind))))


@pytest.mark.parametrize("kind", ["gemma3_vision", "qwen2_5_vl", "mistral3", "qwen3_vl"])
def test_a_head_that_is_tied_is_the_embedding(kind, folder_of, tmp_path):
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    weights = weights_of(folder)
    (head,) = (each for each in weights if each.endswith("lm_head.weight"))
    del weights[head]
    write(folder, weights)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    found = Checkpoint.load(spec_of(folder))
    model = found.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    alone = Alone(kind, folder)
    found.model.generation_config = alone.model.generation_config
    for text in checkpoints.sentences(3, seed=8):
        ids = alone.tokenizer(text)["input_ids"]
        said = found.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=8
        )
        assert alone.generate(text, max_new_tokens=8) == [
            alone.until_end(said[0, len(ids) :].tolist())
        ]


@pytest.mark.parametrize("kind", ["llava", "mistral3"])
def test_names_of_two_versions_are_read(kind, folder_of, tmp_path):
    """Files have `language_model.model.` and a tower at the top, or as the model is made now."""
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    weights = weights_of(folder)

    def newer(name: str) -> str:
        name = name.replace("language_model.model.", "model.language_model.")
        name = name.replace("language_model.lm_head.", "lm_head.")
        return re.sub(r"^(vision_tower|multi_modal)", r"model.\1", name)

    assert {newer(name) for name in weights}.isdisjoint(weights)
    write(folder, {newer(name): each for name, each in weights.items()})
    assert answers(Checkpoint.load(spec_of(folder))) == answers(
        Checkpoint.load(spec_of(folder_of(kind)))
    )


@pytest.mark.parametrize("kind", ["mistral3", "qwen2_5_vl"])
def test_the_text_part_has_to_be_whole(kind, folder_of, tmp_path):
    folder = shutil.copytree(folder_of(kind), tmp_path / kind)
    weights = weights_of(folder)
    name = next(each for each in sorted(weights) if "layers.1" in each and not SEES.search(each))
    held = weights.pop(name)
    write(folder, weights)
    with pytest.raises(Unloadable, match=r"lack 1 .*layers\.1\."):
        Checkpoint.load(spec_of(folder))
    write(folder, weights | {name: held, name.replace("layers.1", "layers.7"): held})
    with pytest.raises(Unloadable, match=r"beyond the configuration 1 .*layers\.7\."):
        Checkpoint.load(spec_of(folder))


def test_a_checkpoint_without_a_text_part_is_refused_by_name(tmp_path):
    checkpoints.build("llava", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {"model_type": "clip", "projection_dim": 8} | {
        "vision_config": config["vision_config"], "text_config": {"vocab_size": 300},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unloadable, match=r"clip.* no text"):
        Checkpoint.load(spec_of(tmp_path))


@pytest.mark.parametrize("kind", ["gemma3_vision", "llama4_vision", "mistral3"])
def test_text_that_was_saved_alone_with_the_settings_of_the_whole_is_loaded(
    kind, folder_of, tmp_path
):
    first = Checkpoint.load(spec_of(folder_of(kind)))
    folder = tmp_path / kind
    first.tokenizer.save_pretrained(folder)
    first.model.save_pretrained(folder)
    config = json.loads((folder_of(kind) / "config.json").read_text())
    config["architectures"] = [CLASSES[kind]]
    (folder / "config.json").write_text(json.dumps(config))
    found = Checkpoint.load(spec_of(folder))
    assert type(found.model).__name__ == CLASSES[kind]
    assert answers(found) == answers(first)


def test_the_template_beside_an_older_processor_is_read(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llava"), tmp_path / "llava")
    template = "USER: {{ messages[0]['content'] }} ASSISTANT:"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Checkpoint.load(spec_of(folder)).tokenizer.chat_template == template
    assert Checkpoint.load(spec_of(folder_of("llava"))).tokenizer.chat_template is None


def test_a_second_start_and_a_renewed_model_are_of_text_alone_too(folder_of):
    found = Checkpoint.load(spec_of(folder_of("mistral3")))
    again = found.reload()
    assert type(again) is type(found.model)
    assert sum(each.numel() for each in again.parameters()) == found.card.num_parameters
