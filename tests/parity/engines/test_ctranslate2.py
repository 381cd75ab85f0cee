"""Greedy answers by CTranslate2 are those of `generate`, and the rest is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.backends.ctranslate2 import CTranslate2Backend
from engine.errors import Unloadable
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.running.engines import Bench

KINDS = ("t5", "marian")


@pytest.fixture(scope="module")
def as_published(folder_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """A Marian whose padding is zeros, as that of all published ones."""

    def make(kind: str) -> Path:
        folder = folder_of(kind)
        if kind == "marian":
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                        module.weight[module.padding_idx] = 0.0
            own = model.generation_config
            own.forced_eos_token_id = own.eos_token_id
            folder = folder.with_name("marian-as-published")
            transformers.AutoTokenizer.from_pretrained(folder_of(kind)).save_pretrained(folder)
            model.save_pretrained(folder)
        return folder

    return make


def spec_of(folder: Path, **settings: Any) -> EngineSpec:
    own = {"threads": 1, "max_sequences": 8, "device": "cpu", **settings}
    return EngineSpec(alias="demo", checkpoint=str(folder), engine="ctranslate2", **own)


def request(id_: int, text: str, **params: Any) -> Request:
    return Request(id=id_, task="generate", text=text, params=SamplingParams(**params))


def bench_of(folder: Path, **settings: Any) -> Bench:
    engine = CTranslate2Backend.load(spec_of(folder, **settings))
    return Bench(engine, engine.sized.spec)


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_in_a_batch_is_that_of_generate_alone(as_published, kind):
    folder = as_published(kind)
    bench, alone = bench_of(folder), Alone(kind, folder)
    requests = [
        request(at, text, max_new_tokens=3 + 4 * at % 29, min_new_tokens=at % 3)
        for at, text in enumerate(checkpoints.sentences(24, seed=5))
    ]

    outputs = bench.answers(requests)

    assert max(len(each.admitted) for each in bench.plans) > 1
    found = [list(outputs[each.id].choices[0].token_ids) for each in requests]
    assert found == [
        alone.generate(
            each.text,
            max_new_tokens=each.params.max_new_tokens,
            min_new_tokens=each.params.min_new_tokens,
        )[0]
        for each in requests
    ]
    assert len({tuple(each) for each in found}) > 20
    reasons = {each.choices[0].finish_reason for each in outputs.values()}
    assert reasons == {"stop", "length"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "params",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"stop": ("mill",)},
    ],
)
def test_what_may_not_be_exact_is_refused_by_name(as_published, kind, params):
    bench = bench_of(as_published(kind))
    good = request(0, "the mill", max_new_tokens=4)

    outputs = bench.answers([good, request(1, "the mill", max_new_tokens=4, **params)])

    failure = outputs[1].failure
    assert failure.code == "unsupported_parameter"
    assert failure.message.startswith(f"{next(iter(params))}:")
    assert outputs[0].failure is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", ["</s>", "<unk>", "mill", "a secret of the keeper"])
def test_a_stop_is_refused_without_its_text_be_it_a_special_token_or_not(as_published, kind, stop):
    bench = bench_of(as_published(kind))

    outputs = bench.answers([request(0, "the mill", max_new_tokens=4, stop=(stop,))])

    failure = outputs[0].failure
    assert failure.code == "unsupported_parameter"
    assert failure.message.startswith("stop: ")
    assert "CTranslate2" in failure.message
    assert stop not in failure.message


def test_stops_of_a_checkpoint_itself_are_refused_at_loading_and_those_of_a_task_by_request(
    folder_of, tmp_path
):
    whole = shutil.copytree(folder_of("t5"), tmp_path / "whole")
    own = transformers.GenerationConfig.from_pretrained(whole)
    own.stop_strings = ["</s>"]
    own.save_pretrained(whole)
    with pytest.raises(Unloadable, match="its own stop_strings is not attended to"):
        CTranslate2Backend.load(spec_of(whole))

    by_task = shutil.copytree(folder_of("t5"), tmp_path / "by_task")
    config = json.loads((by_task / "config.json").read_text())
    config["task_specific_params"] = {"summarization": {"stop_strings": ["</s>"]}}
    (by_task / "config.json").write_text(json.dumps(config))
    bench = bench_of(by_task)
    summary = Request(
        id=1, task="summarize", text="the mill", params=SamplingParams(max_new_tokens=4)
    )

    outputs = bench.answers([request(0, "the mill", max_new_tokens=4), summary])

    assert outputs[0].failure is None
    assert outputs[1].failure.message.startswith("stop: ")


def test_int8_answers_in_words_of_the_same_vocabulary(as_published):
    bench = bench_of(as_published("t5"), quantization="int8")

    (output,) = bench.answers([request(0, "the mill", max_new_tokens=6)]).values()

    assert output.failure is None
    assert bench.loop.engine.card.versions["ctranslate2"]


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("bart", {}, "bart is not among the proved families"),
        ("gpt2", {}, "gpt2 is not among the proved families"),
        ("marian", {}, "does not start from zeros"),
        ("t5", {"dtype": "bfloat16"}, "bfloat16 on cpu"),
        ("t5", {"quantization": "bfloat16"}, "quantization"),
    ],
)
def test_a_checkpoint_that_it_cannot_answer_for_is_not_loaded(folder_of, kind, settings, said):
    with pytest.raises(Unloadable, match=said):
        CTranslate2Backend.load(spec_of(folder_of(kind), **settings))
