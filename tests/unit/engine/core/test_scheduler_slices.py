"""Scheduler: long prompts are read in slices beside sequences that decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.completion import Completion
from engine.core.scheduler import Scheduler, StepLimits, StepPlan
from engine.core.slice_size import MIN_TOKENS
from engine.errors import InvariantBroken
from tests.samples.scheduling import SLICED, ids, learned, read_of, run, sequence, sliced


def test_a_long_prompt_is_read_in_slices_beside_sequences_that_decode():
    it = learned(Scheduler(SLICED), 100)
    it.add([sliced(0, 5)])
    run(it)
    long = sliced(1, 350)
    long.num_prefill_tokens = 350
    it.limits = StepLimits(max_sequences=8, max_step_tokens=4000, max_admitted_tokens=300)
    it.add([long])
    plans = []
    for read in ({1: 100}, {1: 200}, {1: 300}, {1: 350}, {}):
        plans.append(run(it))
        assert read_of(plans[-1]) == read
    assert [plan.num_prompt_tokens for plan in plans] == [100, 100, 100, 50, 0]
    assert [plan.num_tokens for plan in plans] == [101, 101, 101, 51, 2]
    assert [ids(plan.running) for plan in plans] == [[0]] * 4 + [[0, 1]]
    assert [ids(plan.sequences) for plan in plans] == [[0, 1]] * 5


def test_a_prompt_of_a_usual_length_and_one_without_slices_are_read_at_once():
    it = learned(Scheduler(SLICED), 16)
    it.add([sliced(0, 5)])
    run(it)
    it.add([sliced(1, 512)])
    assert read_of(run(it)) == {1: 512}
    it.add([sequence(2, 600)])
    assert (ids(run(it).admitted), it.reading) == ([2], {})


def test_a_long_prompt_is_read_at_once_if_no_sequence_decodes():
    it = learned(Scheduler(SLICED), 16)
    it.add([sliced(0, 3999), sliced(1, 10)])
    plan = run(it)
    assert (read_of(plan), plan.num_tokens) == ({0: 3999}, 3999)
    assert read_of(run(it)) == {1: 10}


def test_short_prompts_are_admitted_beside_the_slices_of_a_long_one_and_pass_the_next_long_one():
    it = learned(Scheduler(SLICED), 64)
    it.add([sliced(0, 5, is_interactive=True)])
    run(it)
    it.add([sliced(1, 1000), sliced(2, 1000), sliced(3, 400), sliced(4, 100)])
    assert read_of(run(it)) == {1: 64, 3: 400}  # 4 would be too much in one step
    plan = run(it)
    assert read_of(plan) == {1: 128, 4: 100}
    assert ids(plan.running) == [0, 3]
    while 2 not in read_of(plan):
        assert plan.num_prompt_tokens <= 512
        plan = run(it)
    # What is left of the first one's share in the step that ends it goes to the next.
    assert read_of(plan) == {1: 1000, 2: 24}


def test_bulk_sequences_are_read_in_longer_slices_while_others_wait():
    it = learned(Scheduler(SLICED), 16)
    it.add([sliced(0, 5, num_rows=6)])
    run(it)
    it.add([sliced(1, 1200), sliced(2, 5, num_rows=3)])
    assert read_of(run(it)) == {1: 16}  # nothing waited yet
    assert read_of(run(it)) == {1: 16 + 512}
    it.add([sliced(3, 5, is_interactive=True)])
    assert read_of(run(it)) == {1: 16 + 512 + 16, 3: 5}
    assert read_of(run(it)) == {1: 16 + 512 + 32}  # somebody waits for it


def test_a_sequence_that_is_cancelled_while_it_is_read_is_gone():
    it = learned(Scheduler(SLICED), 16)
    it.add([sliced(0, 5)])
    run(it)
    it.add([sliced(1, 1200), sliced(2, 5)])
    run(it)
    assert ids(it.cancel([1])) == [1]
    it.check()
    assert it.reading == {}
    assert ids(run(it).sequences) == [0, 2]


def test_sequences_that_are_not_read_are_counted():
    it = learned(Scheduler(SLICED), 16)
    it.add([sliced(0, 5)])
    run(it)
    it.add([sliced(1, 1200)])
    run(it)
    it.reading.clear()
    with pytest.raises(InvariantBroken, match=r"\[1\] are not read"):
        it.check()


def test_a_slice_doubles_the_time_of_a_step_that_decodes():
    it = Scheduler(SLICED)
    assert it.slice_size.num_tokens == 32
    it.add([sliced(0, 5)])
    plan = run(it)
    it.learn(plan, 9.0)  # nobody decoded
    for _ in range(40):
        it.learn(run(it), 0.020)
    it.add([sliced(1, 100)])
    it.learn(run(it), 0.070)  # half a millisecond a token
    assert it.slice_size.num_tokens == pytest.approx(40, abs=1)
    it.add([sliced(2, 100)])
    for _ in range(20):
        it.learn(run(it), 0.020)
    before = it.slice_size.num_tokens
    it.learn(StepPlan(plan.admitted, (), num_prompt_tokens=100), 60.0)  # something was compiled
    assert it.slice_size.num_tokens > before / 2
    for _ in range(60):
        it.learn(StepPlan(plan.admitted, (), num_prompt_tokens=100), 1.020)
    assert it.slice_size.num_tokens == MIN_TOKENS  # no fewer: it is to come to an end


@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),  # steps after the one before
            st.sampled_from([1, 40, 511, 512, 513, 900, 3999]),  # tokens
            st.integers(1, 4),  # rows
            st.booleans(),  # interactive
            st.integers(1, 6),  # steps with its whole prompt
            st.none() | st.integers(0, 30),  # steps after which it is cancelled
        ),
        max_size=20,
    ),
    st.sampled_from([1, 16, 100, 700]),
)
def test_every_prompt_is_read_to_its_end_within_the_limits(arrivals, num_tokens):
    it = learned(Scheduler(SLICED), num_tokens)
    steps_left = {id_: arrival[4] for id_, arrival in enumerate(arrivals)}
    arrives_at, at = {}, 0
    for id_, arrival in enumerate(arrivals):
        arrives_at[id_] = at = at + arrival[0]
    read: dict[int, int] = {}
    ended: list[int] = []
    step = 0
    while len(ended) < len(arrivals):
        for id_, (_, length, num_rows, is_interactive, _, cancelled_after) in enumerate(arrivals):
            if arrives_at[id_] == step:
                it.add([sliced(id_, length, num_rows=num_rows, is_interactive=is_interactive)])
            if cancelled_after is not None and arrives_at[id_] + cancelled_after == step:
                ended += ids(it.cancel([id_]))
        plan = it.next_step()
        it.check()
        if plan is not None:
            assert plan.num_tokens <= SLICED.max_step_tokens
            if plan.running:
                assert plan.num_prompt_tokens <= 512
            assert len(set(ids(plan.sequences))) == len(plan.sequences)
            for each in (*plan.reading, *plan.admitted):
                assert read.get(each.id, 0) < each.num_read_tokens <= len(each.prompt_ids)
                read[each.id] = each.num_read_tokens
            results = []
            for each in plan.sequences:
                if each in plan.running:
                    assert read[each.id] == len(each.prompt_ids)
                if each.is_read:
                    steps_left[each.id] -= 1
                results.append(Completion(each) if steps_left[each.id] == 0 else None)
            ended += [each.sequence.id for each in it.apply(plan, results)]
            it.check()
        step += 1
        assert step < 3000
    assert sorted(ended) == list(range(len(arrivals)))
