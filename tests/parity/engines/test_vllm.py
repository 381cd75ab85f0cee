"""Greedy answers by vLLM are those of `generate`, and the rest is refused by name.

What it refuses is looked at everywhere, what it answers where vLLM is: `make vllm`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.backends.greedy_only import refuse_unless_greedy
from engine.backends.vllm import VllmBackend, only
from engine.checkpoint.loader import Checkpoint
from engine.errors import EngineBroken, Unloadable, UnsupportedParameter
from engine.process import load_engine
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.sampling.resolve_params import ResolvedParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.running.engines import Bench, Child, Ids, child, needs_vllm

STORYTELLER = Path(__file__).parents[3] / "examples" / "models" / "storyteller"

ROPE = {"rope_theta": 10_000.0}
# By name: the kind of checkpoint, another family if it is not of its own, and what its
# configuration says.
MODELS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "llama": ("llama", None, {}),
    "llama, linear positions": (
        "llama",
        None,
        {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}},
    ),
    "llama, llama3 positions": (
        "llama",
        None,
        {
            "rope_parameters": {
                **ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("llama", "mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", None, {}),
    "qwen3": ("qwen2", "qwen3", {}),
    "gpt2": ("gpt2", None, {}),
    "opt": ("opt", None, {}),
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one of MODELS."""

    @cache
    def make(name: str) -> Path:
        kind, family, own = MODELS[name]
        folder = tmp_path_factory.mktemp("vllm") / kind
        checkpoints.build(kind, folder)
        return checkpoints.with_heads_of_32(folder, family, **own)

    return make


@pytest.fixture(scope="module")
def engine_of(model_of: Callable[[str], Path]) -> Iterator[Callable[[str], Child]]:
    """An engine process with one of MODELS; vLLM can be loaded once in a process."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(child(spec_of(model_of(name)))))


def spec_of(folder: Path, **settings: Any) -> EngineSpec:
    own = {"threads": 1, "max_sequences": 8, "device": "cpu", **settings}
    return EngineSpec(alias="demo", checkpoint=str(folder), engine="vllm", **own)


new_id = Ids()


def request(text: str, **params: Any) -> Request:
    own = {"do_sample": False, **params}
    return Request(id=new_id(), task="generate", text=text, params=SamplingParams(**own))


def requests(num: int) -> list[Request]:
    """Of very different lengths, before and after."""
    return [
        request(text, max_new_tokens=3 + 4 * at % 29, min_new_tokens=at % 3)
        for at, text in enumerate(checkpoints.sentences(num, seed=5))
    ]


def told_alone(alone: Alone, each: Request) -> list[int]:
    (row,) = alone.generate(
        each.text,
        do_sample=False,
        max_new_tokens=each.params.max_new_tokens,
        min_new_tokens=each.params.min_new_tokens,
    )
    return row


def answered(choice: Choice) -> tuple[str, int]:
    """What crosses the pipe of an answer's tokens."""
    return choice.text, choice.completion_tokens


def answered_alone(alone: Alone, each: Request) -> tuple[str, int]:
    row = told_alone(alone, each)
    return alone.text(row), len(row)


@needs_vllm
@pytest.mark.parametrize("name", MODELS)
def test_each_answer_in_a_batch_is_that_of_generate_alone(engine_of, model_of, name):
    engine, alone = engine_of(name), Alone(name, model_of(name))
    before = engine.progress
    sent = requests(24)

    outputs = engine.answers(sent)

    found = [answered(outputs[each.id].choices[0]) for each in sent]
    assert found == [answered_alone(alone, each) for each in sent]
    assert len(set(found)) > 18
    assert {each.choices[0].finish_reason for each in outputs.values()} == {"stop", "length"}
    # They shared steps.
    num_steps = engine.progress.num_steps - before.num_steps
    assert num_steps < sum(num_tokens for _, num_tokens in found) / 3


@needs_vllm
def test_each_of_several_end_tokens_ends_an_answer(engine_of, model_of):
    engine, alone = engine_of("qwen2"), Alone("qwen2", model_of("qwen2"))
    ends = alone.model.generation_config.eos_token_id
    sent = [request(text, max_new_tokens=60) for text in checkpoints.sentences(24, seed=9)]

    outputs = engine.answers(sent)

    assert {told_alone(alone, each)[-1] for each in sent} >= set(ends)
    for each in sent:
        assert answered(outputs[each.id].choices[0]) == answered_alone(alone, each)


@needs_vllm
def test_a_forced_end_token_is_added_at_the_limit(model_of, tmp_path):
    folder = shutil.copytree(model_of("gpt2"), tmp_path / "gpt2")
    own = transformers.GenerationConfig.from_pretrained(folder)
    own.forced_eos_token_id = own.eos_token_id
    own.save_pretrained(folder)
    alone, sent = Alone("gpt2", folder), requests(6)

    with child(spec_of(folder)) as engine:
        outputs = engine.answers(sent)

    for each in sent:
        (choice,) = outputs[each.id].choices
        assert answered(choice) == answered_alone(alone, each)
        assert told_alone(alone, each)[-1] == own.eos_token_id


@needs_vllm
def test_the_demo_model_tells_the_same_stories():
    alone = Alone("storyteller", STORYTELLER)
    texts = ["Once", "The miller", "Rose took her lantern and", "A gull sat on the quay. It"]
    with child(spec_of(STORYTELLER, threads=2)) as engine:
        assert engine.ready.card.engine == "vllm"
        assert engine.ready.card.versions["vllm"].startswith("0.32.")
        sent = [request(each, max_new_tokens=80) for each in texts * 3]
        outputs = engine.answers(sent)

    for each in sent:
        (choice,) = outputs[each.id].choices
        assert answered(choice) == answered_alone(alone, each)


@needs_vllm
def test_a_small_cache_changes_no_answer_and_nothing_is_too_long_for_it_unsaid(model_of):
    alone, sent = Alone("llama", model_of("llama")), requests(12)
    too_long = request("the mill", max_new_tokens=220)
    with child(spec_of(model_of("llama"), max_cache_tokens=160, max_step_tokens=136)) as engine:
        assert engine.ready.sized.spec.max_cache_tokens == 160
        outputs = engine.answers([*sent, too_long])

    assert "max_cache_tokens" in outputs[too_long.id].failure.message
    for each in sent:
        assert answered(outputs[each.id].choices[0]) == answered_alone(alone, each)


@needs_vllm
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
def test_what_may_not_be_exact_is_refused_by_name(engine_of, params):
    good = request("the mill", max_new_tokens=4)
    refused = request("the mill", max_new_tokens=4, **params)

    outputs = engine_of("llama").answers([good, refused])

    failure = outputs[refused.id].failure
    assert failure.code == "unsupported_parameter"
    assert failure.message.startswith(f"{next(iter(params))}:")
    assert "vLLM" in failure.message
    assert outputs[good.id].failure is None


@needs_vllm
def test_heads_that_it_would_refuse_in_its_first_step_are_refused_at_loading(folder_of):
    with child(spec_of(folder_of("gpt2"))) as engine:
        message = engine.unloadable.message
    assert "its heads have 8 numbers, and vLLM on a CPU knows 32, 64" in message
    assert 'use engine = "auto"' in message


@needs_vllm
def test_an_error_of_vllm_at_load_becomes_a_sentence(model_of):
    folder = model_of("llama")
    with child(spec_of(folder, max_cache_tokens=10**12)) as engine:
        message = engine.unloadable.message
    assert f"the checkpoint '{folder}' of model 'demo' cannot be loaded by vLLM" in message
    assert "memory" in message


@needs_vllm
# Its packages warn of each other.
@pytest.mark.filterwarnings("ignore")
def test_in_this_process_vllm_holds_what_runs_until_a_step_fails(model_of, monkeypatch):
    """One test, for vLLM can be loaded once in a process."""
    engine = VllmBackend.load(spec_of(model_of("llama"), threads=1))
    assert torch.get_num_threads() == 1
    bench = Bench(engine, engine.sized.spec)

    # Cancelled in the middle, and while waiting.
    sent = [request(text, max_new_tokens=40, min_new_tokens=40) for text in ("a mill",) * 12]
    bench.submit(*sent)
    bench.advance()
    bench.advance()
    bench.tracker.cancel(each.id for each in sent[6:10])
    outputs = {each.request_id: each for each in bench.finish()}
    assert max(len(plan.sequences) for plan in bench.plans) == 8
    reasons = [outputs[each.id].choices[0].finish_reason for each in sent]
    assert reasons == ["length"] * 6 + ["cancelled"] * 4 + ["length"] * 2
    engine.check(())

    # One that vLLM does not take fails alone.
    good, bad = request("a mill", max_new_tokens=4), request("a mill", max_new_tokens=5)
    with monkeypatch.context() as patch:
        add = engine.llm_engine.add_request

        def refusing(id_: str, *rest: Any) -> Any:
            return 1 / 0 if id_ == str(bad.id) else add(id_, *rest)

        patch.setattr(engine.llm_engine, "add_request", refusing)
        outputs = bench.answers([good, bad])
    assert outputs[bad.id].failure.code == "generation_failed"
    assert outputs[good.id].failure is None

    # After a step that failed nothing more is asked of it.
    bench.submit(request("a mill", max_new_tokens=4))
    monkeypatch.setattr(engine.llm_engine.engine_core, "get_output", lambda: 1 / 0)
    with pytest.raises(EngineBroken, match="ZeroDivisionError"):
        bench.advance()


@pytest.mark.parametrize(
    ("name", "settings", "own", "said"),
    [
        ("llama", {"quantization": "int8"}, {}, "quantization = 'int8'"),
        ("mistral", {}, {"sliding_window": 64}, "a window only"),
        ("gpt2", {}, {"scale_attn_by_inverse_layer_idx": True}, "scaled in a way of its own"),
        (
            "llama",
            {},
            {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
            "depend on the length",
        ),
        (
            "llama",
            {},
            {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 2.0}},
            "rotary positions are yarn",
        ),
    ],
)
def test_a_checkpoint_that_it_cannot_answer_for_is_not_loaded(
    model_of, tmp_path, name, settings, own, said
):
    folder = shutil.copytree(model_of(name), tmp_path / "model")
    if own:
        checkpoints.with_heads_of_32(folder, **own)
    spec = spec_of(folder, **settings)
    with pytest.raises(Unloadable, match=f'cannot run by vLLM: .*{said}.*use engine = "auto"'):
        VllmBackend(spec, Checkpoint.load(spec))


@pytest.mark.parametrize("stop", ["<|im_end|>", "a secret of the keeper"])
def test_a_stop_is_refused_without_its_text_be_it_a_special_token_or_not(stop):
    settings = ResolvedParams(max_new_tokens=4, stop=(stop,))
    with pytest.raises(UnsupportedParameter, match=r"^stop: .* vLLM") as refused:
        refuse_unless_greedy(settings, "vLLM")
    assert stop not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("t5", "t5 is an encoder-decoder"), ("gpt_neox", "gpt_neox is not among the proved families")],
)
def test_a_family_that_it_cannot_answer_for_is_not_loaded(folder_of, kind, said):
    spec = spec_of(folder_of(kind))
    with pytest.raises(Unloadable, match=said):
        VllmBackend(spec, Checkpoint.load(spec))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("suppress_tokens", [5]),
        ("bad_words_ids", [[5]]),
        ("min_p", 0.1),
        ("stop_strings", ["<|im_end|>"]),
    ],
)
def test_a_setting_of_its_own_that_would_be_passed_over_is_named(
    model_of, tmp_path, setting, value
):
    folder = shutil.copytree(model_of("llama"), tmp_path / "model")
    own = transformers.GenerationConfig.from_pretrained(folder, **{setting: value})
    own.do_sample = True  # or it could not be written with one that is of sampling
    own.save_pretrained(folder)
    spec = spec_of(folder)
    with pytest.raises(Unloadable, match=f"its own {setting} is not attended to"):
        VllmBackend(spec, Checkpoint.load(spec))


@pytest.mark.parametrize("engine", ["vllm", "ctranslate2"])
def test_a_package_that_is_missing_is_named_with_what_brings_it(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    monkeypatch.delitem(sys.modules, f"engine.backends.{engine}", raising=False)
    with pytest.raises(Unloadable) as refused:
        load_engine(EngineSpec(alias="reports", checkpoint="nothing", engine=engine))
    said = str(refused.value)
    assert f"model 'reports' needs {engine}, which is not installed" in said
    assert f'pip install "tidemill[{engine}]"' in said


@pytest.mark.parametrize(
    ("index", "visible", "seen"), [(0, None, "0"), (2, None, "2"), (1, "4,6", "6")]
)
def test_the_gpu_that_it_is_to_use_is_the_only_one_that_it_sees(index, visible, seen):
    assert only(index, visible) == seen
