"""Encoder-decoders with special needs answer in flight as alone.

They assume rows of equal length, change their own state, or are for long documents.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
from torch import Tensor

from engine.backends import proved_router
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.errors import InvariantBroken
from engine.proof import verdicts
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from engine.runners.own_cache import OwnCacheRunner
from engine.runners.row_masks import RowMasks
from engine.runners.step_executor import PrefillBatch
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.joining import SETTINGS, let_join, requests_for, spec_of
from tests.running.engines import Bench


def document(num_words: int, seed: int) -> str:
    return " ".join(" ".join(checkpoints.sentences(num_words // 15, seed=seed)).split()[:num_words])


# Models that change their own state


@pytest.mark.usefixtures("proved_once")
def test_a_short_text_does_not_change_bigbird_for_a_long_one(folder_of):
    """A short text switches its attention to full, as in a freshly loaded model. The switch draws
    random weights, which must not change a sampled answer."""
    kind = "bigbird_pegasus"
    spec = spec_of(folder_of(kind), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert re.match(r"proved at load: (\d+) of \1 requests", engine.card.engine_reason)
    engine.in_flight.runner.kv_cache.poisoned = True
    bench = Bench(engine, spec)
    texts = [
        document(120, seed=at) if at % 2 else text
        for at, text in enumerate(checkpoints.sentences(15))
    ]
    asked = requests_for(texts)
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == 15
    sparse, loaded = 0, Alone(kind, folder_of(kind))
    for each in asked:
        alone = loaded.afresh()
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        sparse += alone.model.get_encoder().attention_type == "block_sparse"
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected
    assert 7 <= sparse < 12
    assert max(len(plan.sequences) for plan in bench.plans) > 2


def test_a_second_start_keeps_to_what_was_proved(folder_of, tmp_path, monkeypatch):
    monkeypatch.setenv(verdicts.ENVIRONMENT_VARIABLE, str(tmp_path / "kept"))
    for kind, pads_rows in (("prophetnet", False), ("bigbird_pegasus", True), ("led", True)):
        first = load(spec_of(folder_of(kind)))
        with monkeypatch.context() as patch:
            patch.setattr(proved_router, "prove", lambda *_: pytest.fail("it was proved again"))
            again = load(spec_of(folder_of(kind)))
        for each in (first, again):
            assert each.pads_rows is pads_rows


@pytest.mark.usefixtures("proved_once")
def test_experts_that_take_every_token_answer_in_flight_as_alone(folder_of):
    """With a smaller fraction, rows compete for the experts (`test_sharing.py`)."""
    spec = spec_of(folder_of("nllb_moe_ample"), max_sequences=8)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    assert engine.card.engine_reason.endswith("rows of one length at a time")
    bench = Bench(engine, spec)
    asked = requests_for(checkpoints.sentences(15, seed=3))
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == 15
    alone = Alone("nllb_moe_ample", folder_of("nllb_moe_ample"))
    for each in asked:
        expected = alone.generate(each.text, **SETTINGS[each.id % len(SETTINGS)])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected
    assert len({each.choices[0].token_ids for each in outputs.values()}) > 3


# Models that assume rows of equal length


@pytest.mark.usefixtures("proved_once")
def test_only_rows_of_one_length_share_a_pass_where_padding_changes_answers(folder_of, monkeypatch):
    passes = []
    whole = OwnCacheRunner._decode

    def decode(runner, caches, tokens):
        passes.append({each.length for each in caches})
        return whole(runner, caches, tokens)

    spec = spec_of(folder_of("prophetnet"), engine="inflight")
    engine = load(spec)
    monkeypatch.setattr(OwnCacheRunner, "_decode", decode)
    bench = Bench(engine, spec)
    let_join(bench, requests_for(checkpoints.sentences(15)))
    assert passes
    assert {len(each) for each in passes} == {1}


@pytest.mark.parametrize("kind", ["led", "fsmt"])
def test_without_a_mask_padded_rows_do_not_share_a_pass(kind, folder_of, monkeypatch):
    """A layer that gets no mask reads the padding, which the proof notices, too."""
    monkeypatch.setattr(RowMasks, "_hook_for", lambda *_: lambda *given: None)
    engine = load(spec_of(folder_of(kind)))
    assert engine.in_flight.runner.pads_rows is False


# Long documents


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", checkpoints.LONG)
def test_long_documents_are_answered_in_flight_as_alone(kind, folder_of):
    """The documents have dozens of windows and blocks and run beside short texts."""
    spec = spec_of(folder_of(kind), max_sequences=8, max_step_tokens=20_000)
    engine = load(spec)
    assert isinstance(engine, RouterBackend), engine.card.engine_reason
    engine.in_flight.runner.kv_cache.poisoned = True
    bench = Bench(engine, spec)
    texts = [document(1500, 1), "river", document(700, 2), document(60, 3), document(1100, 4)]
    asked = [
        Request(id=at, task="generate", text=text, params=SamplingParams(**SETTINGS[at % 4]))
        for at, text in enumerate([*texts, "grain"])
    ]
    outputs = let_join(bench, asked)
    assert bench.progress.num_in_flight == len(asked)
    assert max(each.prompt_tokens for each in outputs.values()) > 1400
    loaded = Alone(kind, folder_of(kind))
    for each in asked:
        expected = loaded.afresh().generate(each.text, **SETTINGS[each.id % 4])
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


# Equal inputs


WAYS = [("bart", False), ("bart", True), ("t5", False), ("t5gemma", None), ("led", None)]


def sharing_engine(kind: str, is_paged: bool | None, folder: Path) -> RouterBackend:
    """is_paged: None: by the model's own cache"""
    spec = spec_of(folder, max_sequences=16, max_cache_tokens=16_384)
    return RouterBackend(
        spec,
        Checkpoint.load(spec),
        poisoned=True,
        is_paged=is_paged,
        by_own_cache=is_paged is None,
    )


def encoder_passes(engine: RouterBackend) -> list[int]:
    """The number of tokens of each forward of the encoder from now on."""
    passes: list[int] = []
    executor = getattr(engine.in_flight.runner, "executor", None)
    if executor is None:  # by the model's own cache
        engine.checkpoint.model.get_encoder().register_forward_pre_hook(
            lambda _, __, named: passes.append(named["input_ids"].numel()), with_kwargs=True
        )
        return passes
    prefill = executor.prefill

    def counted(batch: PrefillBatch) -> Tensor:
        passes.append(len(batch.token_ids))
        return prefill(batch)

    executor.prefill = counted
    return passes


@pytest.mark.parametrize(("kind", "is_paged"), WAYS)
def test_equal_inputs_are_encoded_once(kind, is_paged, folder_of):
    """One document with several seeds and settings runs beside others, some of them equal, too."""
    engine = sharing_engine(kind, is_paged, folder_of(kind))
    bench = Bench(engine, engine.spec)
    passes = encoder_passes(engine)
    one, two = checkpoints.sentences(2, seed=8)
    drawn = {**SETTINGS[4], "num_beams": 1}  # BART's default is four beams
    settings = [
        SETTINGS[0],
        *SETTINGS[2:4],
        drawn,
        {**drawn, "seed": 6},
        {**drawn, "num_return_sequences": 3},
    ]
    asked = [
        Request(
            id=at, task="generate", text=two if at % 3 == 2 else one, params=SamplingParams(**each)
        )
        for at, each in enumerate([*settings, *settings])
    ]
    # Some join while others of the same text run, or end.
    outputs = {}
    for at in range(0, len(asked), 4):
        bench.submit(*asked[at : at + 4])
        bench.advance()
        bench.advance()
    outputs = {each.request_id: each for each in bench.finish()}
    assert bench.progress.num_in_flight == len(asked)
    num_tokens = {len(engine.encode(each).prompt_ids) for each in asked}
    assert len(num_tokens) == 2
    # The scheduler chooses which of the two texts runs without a pause; far fewer than 12 passes.
    assert 1 <= len(passes) <= 5
    alone = Alone(kind, folder_of(kind))
    for each in asked:
        own = [*settings, *settings][each.id]
        expected = alone.generate(each.text, **own)
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected
    assert_nothing_is_held(engine)


def assert_nothing_is_held(engine: RouterBackend) -> None:
    runner = engine.in_flight.runner
    gc.collect()
    registry = getattr(runner.encoded_prompts, "by_prompt", runner.encoded_prompts)
    assert not len(registry)
    runner.kv_cache.check([])


@pytest.mark.parametrize(("kind", "is_paged"), WAYS)
def test_the_first_holder_of_a_shared_encoding_may_leave_first(kind, is_paged, folder_of):
    """Freed memory is poisoned, so that a later read of it would change an answer."""
    engine = sharing_engine(kind, is_paged, folder_of(kind))
    bench = Bench(engine, engine.spec)
    passes = encoder_passes(engine)
    (text,) = checkpoints.sentences(1, seed=4)
    lengths = [3, 14, 9, 14]
    asked = [
        Request(
            id=at,
            task="generate",
            text=text,
            params=SamplingParams(max_new_tokens=each, min_new_tokens=each, do_sample=False),
        )
        for at, each in enumerate(lengths)
    ]
    bench.submit(asked[0])
    bench.advance()
    bench.submit(*asked[1:3])
    for _ in range(5):
        bench.advance()
    bench.loop.tracker.cancel([2])
    bench.submit(asked[3])
    outputs = {each.request_id: each for each in bench.finish()}
    assert len(passes) == 1
    alone = Alone(kind, folder_of(kind))
    for at in (0, 1, 3):
        own = {"max_new_tokens": lengths[at], "min_new_tokens": lengths[at], "do_sample": False}
        assert [list(outputs[at].choices[0].token_ids)] == alone.generate(text, **own)
    assert_nothing_is_held(engine)


def test_pages_of_an_encoder_are_counted_once(folder_of):
    engine = sharing_engine("bart", True, folder_of("bart"))
    bench, kv_cache = Bench(engine, engine.spec), engine.in_flight.runner.kv_cache
    params = SamplingParams(max_new_tokens=20, min_new_tokens=20, do_sample=False, num_beams=1)
    text = document(40, 1)

    def pages_after(num: int) -> int:
        bench.submit(
            *(Request(id=at, task="generate", text=text, params=params) for at in range(num))
        )
        for _ in range(3):
            bench.advance()
        taken = kv_cache.num_pages - 1 - len(kv_cache.free_pages)
        bench.finish()
        return taken

    one = pages_after(1)
    assert one >= 3
    assert pages_after(3) == one + 2  # a page of its own answer each
    assert kv_cache.num_pages - 1 == len(kv_cache.free_pages)


def test_a_sequence_that_reads_what_it_does_not_hold_is_found(folder_of):
    engine = sharing_engine("bart", False, folder_of("bart"))
    bench = Bench(engine, engine.spec)
    bench.submit(*requests_for(checkpoints.sentences(2)))
    bench.advance()
    cache = next(iter(engine.in_flight.running_sequences.values())).cache
    cache.encoded.release(cache)
    with pytest.raises(InvariantBroken, match="reads an encoder's output"):
        bench.loop.check()


# Memory


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", ["led_long", "longt5_long"])
def test_a_document_beyond_the_cache_is_refused_with_numbers(kind, folder_of):
    """The budget decides whether a document of thousands of tokens is admitted or refused."""
    spec = spec_of(folder_of(kind), max_cache_tokens=4_000, max_step_tokens=20_000)
    bench = Bench(load(spec), spec)
    params = SamplingParams(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    asked = [
        Request(id=at, task="generate", text=document(words, at), params=params)
        for at, words in enumerate([1500, 6000, 1400, 30])
    ]
    outputs = bench.answers(asked)
    assert outputs[1].failure.code == "unsupported_parameter"
    assert "4000 (max_cache_tokens)" in outputs[1].failure.message
    for at in (0, 2, 3):
        assert outputs[at].failure is None
    assert bench.progress.num_in_flight == 3
    # Two do not fit at once, since each row has a copy of the encoder's output.
    assert max(len(plan.sequences) for plan in bench.plans) == 2
    assert all({0, 2} - {each.id for each in plan.sequences} for plan in bench.plans)


@pytest.mark.usefixtures("proved_once")
def test_a_long_document_does_not_lengthen_the_rows_of_others(folder_of, monkeypatch):
    """Encoder outputs are padded to the longest of a pass, once for each row."""
    monkeypatch.setattr("engine.runners.own_cache.NO_MATTER", 64)
    spec = spec_of(folder_of("led_long"), max_step_tokens=20_000)
    engine = load(spec)
    passes = []
    whole = OwnCacheRunner._decode

    def decode(runner, caches, tokens):
        passes.append(sorted(each.encoded.states.shape[1] for each in caches))
        return whole(runner, caches, tokens)

    monkeypatch.setattr(OwnCacheRunner, "_decode", decode)
    params = SamplingParams(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    texts = [document(words, at) for at, words in enumerate([900, 20, 25, 700])]
    asked = [
        Request(id=at, task="generate", text=text, params=params) for at, text in enumerate(texts)
    ]
    outputs = Bench(engine, spec).answers(asked)
    assert {len(each) for each in passes} == {1, 2}
    assert all(each[-1] <= max(2 * each[0], 64) for each in passes)
    alone = Alone("led_long", folder_of("led_long"))
    for each in asked:
        expected = alone.generate(each.text, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert [list(choice.token_ids) for choice in outputs[each.id].choices] == expected


def test_rows_of_one_document_read_one_copy_of_it(folder_of):
    spec = spec_of(folder_of("t5gemma"))
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=True)
    bench = Bench(engine, engine.spec)
    params = SamplingParams(max_new_tokens=6, min_new_tokens=6, do_sample=False, num_beams=4)
    bench.submit(Request(id=0, task="generate", text=document(60, 1), params=params))
    bench.advance()
    bench.advance()
    (rows,) = engine.in_flight.runner.joined.joined
    keys = rows.past.cross_attention_cache.layers[0].keys
    assert keys.shape[0] == 4
    assert keys.stride(0) == 0
