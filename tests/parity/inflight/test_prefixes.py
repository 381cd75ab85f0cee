"""Shared prefixes are computed once, long prompts in slices; answers equal those alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.errors import InvariantBroken
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import break_when, let_come_and_go

# One kind for each position encoding and executor: fused, captured, and with a paged cache.
KINDS = ("llama", "gpt2", "opt", "gpt_neox", "qwen3", "gemma2")
WAYS: tuple[dict[str, object], ...] = (
    {"max_new_tokens": 7, "do_sample": False},
    {"max_new_tokens": 9, "num_beams": 3, "do_sample": False},
    {"max_new_tokens": 8, "do_sample": True, "seed": 5, "temperature": 0.8},
    {"max_new_tokens": 6, "do_sample": True, "seed": 3, "num_return_sequences": 2},
    {
        "max_new_tokens": 8,
        "do_sample": False,
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
    },
)


@pytest.fixture(scope="module", params=["inflight", "paged"])
def engine_name(request) -> str:
    return request.param


def prompts_of(alone: Alone) -> list[str]:
    """Prompts of at most 150 tokens; some share prefixes of several lengths."""
    words = " ".join(checkpoints.sentences(40)).split()
    text = " ".join(words)
    beginnings = [cut(alone, text, num) for num in (33, 70, 101, 128)]
    other = cut(alone, " ".join(reversed(words)), 101)
    endings = ["", " mill", " the river keeper", " storm at night", " " + " ".join(words[40:49])]
    return [begin + end for begin in [*beginnings, other] for end in endings]


def cut(alone: Alone, text: str, num_tokens: int) -> str:
    ids = alone.tokenizer(text, add_special_tokens=False)["input_ids"][:num_tokens]
    return alone.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def asked_of(folder_of):
    """Requests of a kind with the answers of `generate`."""
    made = {}

    def make(kind: str) -> list[tuple[Request, list[list[int]]]]:
        if kind not in made:
            alone = Alone(kind, folder_of(kind))
            made[kind] = [
                (
                    Request(id=at, task="generate", text=text, params=SamplingParams(**how)),
                    alone.generate(text, **how),
                )
                for at, text in enumerate(prompts_of(alone))
                for how in [WAYS[at % len(WAYS) if at % 2 else 0]]
            ]
        return made[kind]

    return make


def prefixes_of(bench):
    return bench.loop.engine.in_flight.runner.kv_cache.prefixes


def got(output) -> list[list[int]]:
    return [list(each.token_ids) for each in output.choices]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_begin_alike_are_read_once_and_answer_as_alone(kind, asked_of, bench_of):
    bench, asked = bench_of(kind, max_sequences=8), asked_of(kind)
    for at in range(2):  # the second time most of it is cached
        outputs = bench.answers(replace(one, id=one.id + 100 * at) for one, _ in asked)
        wrong = [id_ for id_, each in outputs.items() if got(each) != asked[id_ - 100 * at][1]]
        assert wrong == []
    found = bench.progress.num_found_tokens
    assert 0.4 * bench.progress.num_prompt_tokens < found < bench.progress.num_prompt_tokens
    # Cached blocks have no reader any more, and the steps read all tokens that were not found.
    assert all(each.num_users == 0 for each in prefixes_of(bench).kept.values())
    num_read = sum(each.num_prompt_tokens for each in bench.plans)
    assert num_read + found == bench.progress.num_prompt_tokens


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_prefix_caching_nothing_is_kept(kind, asked_of, bench_of):
    bench = bench_of(kind, max_sequences=8, prefix_caching=False)
    outputs = bench.answers(one for one, _ in asked_of(kind))
    assert all(got(outputs[one.id]) == expected for one, expected in asked_of(kind))
    assert prefixes_of(bench) is None
    assert bench.progress.num_found_tokens == 0


ARRIVAL = st.tuples(st.integers(0, 4), st.integers(0, 24), st.none() | st.integers(0, 9))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrivals=st.lists(ARRIVAL, min_size=1, max_size=14),
    slice_tokens=st.sampled_from([1, 16, 30]),
    num_blocks=st.integers(0, 12),
)
def test_sequences_that_join_and_leave_answer_as_alone(
    kind, arrivals, slice_tokens, num_blocks, asked_of, narrow_bench_of
):
    """Long prompts are read in slices; the prefix cache is so small that prefixes are evicted,
    too."""
    bench = narrow_bench_of(kind)
    bench.scheduler.slice_size.decode_seconds = 0.1
    bench.scheduler.slice_size.token_seconds = 0.1 / slice_tokens
    bench.scheduler.learn = lambda plan, seconds: None
    prefixes_of(bench).max_blocks = num_blocks
    prefixes_of(bench).make_room(num_blocks)
    let_come_and_go(bench, asked_of(kind), arrivals)


@pytest.fixture(scope="module")
def narrow_bench_of(bench_of):
    made = {}

    def make(kind: str):
        if kind not in made:
            bench = bench_of(kind, max_sequences=6, max_step_tokens=500)
            # Prompts of more tokens than this are long.
            limits = replace(bench.scheduler.limits, max_admitted_tokens=40)
            bench.scheduler.limits = limits
            # Steps that take no time make slices of the fewest tokens, whatever the machine does.
            bench.loop.clock = lambda: 0.0
            made[kind] = bench
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_in_slices_beside_others_answers_as_alone(kind, asked_of, narrow_bench_of):
    bench = narrow_bench_of(kind)
    prefixes_of(bench).shrink(0)  # a prompt of which most is cached is not long
    draw = random.Random(kind)
    asked = asked_of(kind)
    first = 1 + max((each.id for plan in bench.plans for each in plan.sequences), default=0)
    order = [draw.randrange(len(asked)) for _ in range(16)]
    num_plans = len(bench.plans)
    bench.submit(*(replace(asked[which][0], id=first + at) for at, which in enumerate(order)))
    outputs = {each.request_id: each for each in bench.finish()}
    assert all(got(outputs[first + at]) == asked[each][1] for at, each in enumerate(order))
    plans = bench.plans[num_plans:]
    assert any(plan.reading and plan.running for plan in plans)
    assert all(plan.num_prompt_tokens <= 40 for plan in plans if plan.running)


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_step_that_fails_while_prompts_are_read_fails_its_culprit_alone(name, asked_of, bench_of):
    """Nothing of a partly computed prompt remains, and no cached prefix loses a reader."""
    bench, asked = bench_of("llama", max_sequences=6), asked_of("llama")
    bench.scheduler.limits = replace(bench.scheduler.limits, max_admitted_tokens=40)
    culprit = 13
    break_when(bench, name, lambda ids: ValueError() if culprit in ids else None)
    break_when(bench, "prefill_and_decode", lambda ids: ValueError() if culprit in ids else None)
    outputs = bench.answers(one for one, _ in asked)
    assert outputs.pop(culprit).failure.code == "generation_failed"
    assert all(got(each) == asked[id_][1] for id_, each in outputs.items())
    bench.loop.check()


def test_a_sequence_that_reads_a_kept_block_without_being_counted_is_noticed(asked_of, bench_of):
    bench, asked = bench_of("llama", max_sequences=6), asked_of("llama")
    bench.answers(one for one, _ in asked)
    block = next(iter(prefixes_of(bench).kept.values()))
    block.num_users += 1
    with pytest.raises(InvariantBroken, match="blocks of prompts"):
        bench.loop.check()


@pytest.mark.parametrize(("kind", "by_own_cache"), [("llama", True), ("t5", False)])
def test_models_whose_prompts_cannot_be_cut_read_them_whole(kind, by_own_cache, folder_of):
    """A model with a cache of its own kind, and an encoder, which attends to both sides."""
    spec = EngineSpec(alias=kind, checkpoint=str(folder_of(kind)), device="cpu")
    engine = RouterBackend(spec, Checkpoint.load(spec), by_own_cache=by_own_cache)
    text = " ".join(checkpoints.sentences(2))
    for id_ in range(2):
        sequence = engine.encode(
            Request(id=id_, task="generate", text=text, params=SamplingParams())
        )
        assert sequence.blocks is None
        assert sequence.num_read_tokens is None
