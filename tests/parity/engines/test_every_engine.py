"""What holds of every engine: one suite for the fake one and for those with a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.running.engines import Child, Ids, needs_vllm

LONG = "water and grain " * 300
GREEDY = {"do_sample": False}


@pytest.fixture(
    scope="module",
    params=[
        "fake", "exact t5", "exact gpt2", "inflight t5", "inflight gpt2", "ctranslate2 t5",
        pytest.param("vllm llama", marks=needs_vllm),
    ],
)  # fmt: skip
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    settings = {"threads": 1, "max_input_tokens": 200, "max_sequences": 8, "device": "cpu"}
    if request.param == "fake":
        return EngineSpec(alias="demo", checkpoint="fake", engine="fake", **settings)
    engine, kind = request.param.split()
    folder: Path = tmp_path_factory.mktemp("checkpoints") / kind
    checkpoints.build(kind, folder)
    if engine == "vllm":
        checkpoints.with_heads_of_32(folder)
    return EngineSpec(alias="demo", checkpoint=str(folder), engine=engine, **settings)


@pytest.fixture(scope="module")
def started(spec: EngineSpec) -> Iterator[list[Child]]:
    """The processes of this engine, of which only the last may be running."""
    children: list[Child] = []
    yield children
    for each in children:
        each.close()


@pytest.fixture
def engine(spec: EngineSpec, started: list[Child]) -> Child:
    """One process for the tests that leave it running, and another once a test has ended it."""
    if not started or started[-1].process.poll() is not None:
        # One with a model is started as a program.
        is_first = not started and (spec.engine, Path(spec.checkpoint).name) == ("exact", "t5")
        started.append(Child(spec, is_forked=not is_first))
        assert started[-1].ready.card.alias == "demo"
    return started[-1]


new_id = Ids()


def request(text: str, num_tokens: int = 6, **params) -> Request:
    return Request(
        id=new_id(),
        task="generate",
        text=text,
        params=SamplingParams(max_new_tokens=num_tokens, **{**GREEDY, **params}),
    )


def is_greedy_only(spec: EngineSpec) -> bool:
    return spec.engine in ("ctranslate2", "vllm")


def texts(num: int) -> list[str]:
    return checkpoints.sentences(num, seed=21)


def test_every_request_gets_exactly_one_output(engine):
    requests = [request(text, 2 + at % 7) for at, text in enumerate(texts(40))]
    for at in range(0, 40, 10):
        engine.send(*requests[at : at + 10])
    outputs = engine.collect(40)
    assert sorted(each.request_id for each in outputs) == [each.id for each in requests]
    asked = {each.id: each.params.max_new_tokens for each in requests}
    for output in outputs:
        (choice,) = output.choices
        assert output.failure is None
        assert 1 <= choice.completion_tokens <= asked[output.request_id]
        assert output.prompt_tokens > 0
        assert output.settings["num_beams"] == 1
    # Nothing comes twice: what comes next is the answer to the next request.
    last = request("the tide")
    assert engine.answers([last]).keys() == {last.id}


def test_a_batch_changes_no_answer(spec, engine):
    settings = [{}]
    if is_greedy_only(spec):
        refused = request("the tide", num_beams=3)
        assert engine.answers([refused])[refused.id].failure.message.startswith("num_beams")
    else:
        settings += [{"num_beams": 3}, {"do_sample": True, "seed": 5, "num_return_sequences": 2}]
    together = [request(text, 8, **each) for text in texts(6) for each in settings]
    alone = [request(text, 8, **each) for text in texts(6) for each in settings]
    in_company = engine.answers(together)
    by_itself = [engine.answers([each])[each.id] for each in alone]
    got = [in_company[each.id].choices for each in together]
    assert got == [each.choices for each in by_itself]
    assert len({choices[0].text for choices in got}) > len(got) / 2


def test_a_seed_gives_its_sample_again_and_another_gives_another(spec, engine):
    if is_greedy_only(spec):
        refused = request("the tide", do_sample=True)
        assert engine.answers([refused])[refused.id].failure.message.startswith("do_sample")
        return
    sampled = {"do_sample": True, "temperature": 1.5, "num_tokens": 12}
    one, again, other = (request(texts(1)[0], **sampled, seed=each) for each in (1, 1, 2))
    outputs = engine.answers([one, again, other])
    assert outputs[one.id].choices == outputs[again.id].choices
    assert outputs[one.id].choices != outputs[other.id].choices


def test_a_sample_without_a_seed_says_which_it_took(spec, engine):
    if is_greedy_only(spec):
        return  # refused, as above
    first = request(texts(1)[0], do_sample=True)
    seed = engine.answers([first])[first.id].settings["seed"]
    second = request(texts(1)[0], do_sample=True, seed=seed)
    assert isinstance(seed, int)
    assert engine.answers([second])[second.id].settings["seed"] == seed


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        ({"text": " \n\t "}, "empty_prompt", "empty"),
        ({"text": LONG}, "prompt_too_long", "takes 200"),
        ({"text": "a", "num_return_sequences": 2}, "unsupported_parameter", "num_return_sequences"),
        ({"text": "a", "num_beams": 9}, "unsupported_parameter", "max_sequences"),
        ({"text": "a", "num_tokens": 3, "min_new_tokens": 5}, "unsupported_parameter", "min_new"),
    ],
)
def test_a_bad_request_in_a_group_fails_alone(spec, engine, bad, code, said):
    if is_greedy_only(spec) and "num_beams" in bad:
        said = "num_beams"  # however few
    refused = request(**bad)
    good = [request(text) for text in texts(4)]
    outputs = engine.answers([*good[:2], refused, *good[2:]])
    failure = outputs[refused.id].failure
    assert (failure.code, failure.retryable) == (code, False)
    assert said in failure.message
    assert outputs[refused.id].choices == ()
    assert all(outputs[each.id].failure is None for each in good)


def test_odd_characters_neither_break_the_pipe_nor_come_out(engine):
    odd = [request(text) for text in ("a\0b mill", "lone \ud800 surrogate", "\u202e\ufeff tide")]
    for output in engine.answers(odd).values():
        assert output.failure is None
        for choice in output.choices:
            choice.text.encode("utf-8")


def test_cancelled_requests_are_answered_once_and_the_others_in_full(engine):
    requests = [request(text, 30) for text in texts(30)]
    cancelled = {each.id for each in requests[5:]}
    engine.send(*requests)
    engine.cancel(*cancelled, 123_456_789)
    outputs = engine.collect(30)
    assert sorted(each.request_id for each in outputs) == [each.id for each in requests]
    for output in outputs:
        if output.request_id not in cancelled:
            assert output.choices[0].finish_reason in ("stop", "length")


def test_progress_only_rises_and_ends_with_nothing_held(engine):
    before = engine.progress
    engine.answers([request(text) for text in texts(3)])
    after = engine.progress
    assert after.num_steps > before.num_steps
    assert after.num_prompt_tokens > before.num_prompt_tokens
    assert after.num_completion_tokens > before.num_completion_tokens
    assert (after.num_waiting, after.num_running) == (0, 0)


def test_an_engine_stops_on_request_with_work_unfinished(engine):
    engine.send(*(request(text, 40) for text in texts(40)))
    assert engine.stop() == 0


def test_an_engine_ends_with_its_parent(engine):
    engine.send(*(request(text, 40) for text in texts(40)))
    engine.pipe.close()
    assert engine.wait() == 0
