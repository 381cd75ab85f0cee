import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.core.completion import Completion
from engine.core.scheduler import MAX_OVERTAKING, Scheduler, StepLimits
from engine.core.sequence import SequenceState
from engine.errors import InvariantBroken, PromptTooLong, UnsupportedParameter
from tests.samples.scheduling import LIMITS, ids, run, scheduler, sequence


def test_sequences_are_admitted_while_rows_are_free_and_run_until_they_finish():
    it = scheduler(*(sequence(each) for each in range(6)))
    assert ids(run(it, 1).admitted) == [0, 1, 2, 3]
    second = run(it, 0, 2, 3, 4)
    assert (ids(second.running), ids(second.admitted)) == ([0, 2, 3], [4])
    assert ids(run(it, 5).admitted) == [5]
    assert run(it) is None


def test_a_step_stays_within_its_tokens():
    it = scheduler(sequence(0, 12), sequence(1, 8), sequence(2, 1))
    plan = run(it)
    assert (ids(plan.admitted), plan.num_tokens) == ([0, 1], 20)
    plan = run(it)  # the two that go on compute a token each
    assert (ids(plan.admitted), plan.num_tokens) == ([2], 3)


def test_all_rows_of_a_sequence_are_admitted_together_or_none():
    it = scheduler(sequence(0, num_rows=2), sequence(1, num_rows=3), sequence(2))
    assert ids(run(it, 0).admitted) == [0]
    assert ids(run(it).admitted) == [1, 2]


def test_a_small_sequence_does_not_overtake_a_large_one_for_ever():
    it = scheduler(sequence(0, num_rows=4), sequence(1))
    run(it, 0)
    it.add([sequence(2, num_rows=4), sequence(3)])
    assert ids(run(it).admitted) == [1]
    for _ in range(3):
        assert ids(run(it).admitted) == []
    run(it, 1)
    assert ids(run(it).admitted) == [2]


def test_interactive_sequences_go_first_and_the_others_keep_their_order():
    it = scheduler(*(sequence(each) for each in range(6)))
    assert ids(run(it, 0, 1).admitted) == [0, 1, 2, 3]
    it.add([sequence(6, is_interactive=True), sequence(7), sequence(8, is_interactive=True)])
    assert ids(run(it, 2, 3, 6).admitted) == [6, 8]
    it.cancel([8])
    assert ids(run(it).admitted) == [4, 5, 7]


def test_the_oldest_waiting_sequence_is_overtaken_at_most_max_overtaking_times():
    it = scheduler(*(sequence(each, num_rows=4) for each in (0, 1, 2)))
    run(it, 0)
    order = []
    for id_ in range(3, 2 * MAX_OVERTAKING + 13):
        it.add([sequence(id_, num_rows=4, is_interactive=True)])
        order += ids(run(it, *range(1, id_ + 1)).admitted)
    assert [order.index(each) for each in (1, 2)] == [MAX_OVERTAKING, 2 * MAX_OVERTAKING + 1]
    assert order[:3] == [3, 4, 5]


def test_one_batch_key_runs_at_a_time_and_the_oldest_waiting_sequence_sets_the_next():
    it = scheduler(*(sequence(at, batch_key=key) for at, key in enumerate("aba")))
    assert ids(run(it).admitted) == [0, 2]
    it.add([sequence(3, batch_key="a")])
    assert ids(run(it, 0, 2).admitted) == []  # b has waited longer
    assert ids(run(it, 1).admitted) == [1]
    assert ids(run(it, 3).admitted) == [3]


def test_a_sequence_that_runs_to_completion_shares_its_step_with_another_batch_key():
    it = scheduler(*(sequence(at, batch_key=key) for at, key in enumerate("aba")))
    it.waiting[1].runs_to_completion = True
    assert ids(run(it).admitted) == [0, 2]
    plan = run(it, 1)
    assert (ids(plan.running), ids(plan.admitted)) == ([0, 2], [1])
    it.add([sequence(3, batch_key="a")])
    assert ids(run(it, 0, 2, 3).sequences) == [0, 2, 3]


def test_few_prompt_tokens_are_admitted_at_once_and_a_long_prompt_alone():
    it = Scheduler(StepLimits(max_sequences=4, max_step_tokens=20, max_admitted_tokens=6))
    it.add([sequence(0, 4), sequence(1, 2), sequence(2, 1), sequence(3, 9)])
    assert ids(run(it).admitted) == [0, 1]
    assert ids(run(it, 2).admitted) == [2]
    assert ids(run(it, 0, 1, 3).admitted) == [3]
    together = [sequence(4, 4, batch_key="b"), sequence(5, 4, batch_key="b")]
    for each in together:
        each.runs_to_completion = True
    it.add(together)
    assert ids(run(it).admitted) == [4, 5]


def test_max_rows_bounds_admission_except_for_a_single_sequence():
    it = scheduler(sequence(0, num_rows=2), sequence(1), sequence(2, num_rows=3))
    assert ids(it.next_step(max_rows=2).admitted) == [0]
    assert ids(it.next_step(max_rows=2).admitted) == []
    it.cancel([0])
    assert ids(it.next_step(max_rows=2).admitted) == [1]
    it.cancel([1])
    assert ids(it.next_step(max_rows=2).admitted) == [2]
    it.check()


def test_admission_stays_within_max_cache_tokens():
    limits = StepLimits(max_sequences=4, max_step_tokens=20, max_cache_tokens=100)
    it = Scheduler(limits)
    large, small, next_ = (sequence(each) for each in range(3))
    large.num_cache_tokens, small.num_cache_tokens, next_.num_cache_tokens = 70, 30, 1
    it.add([large, small, next_])
    assert ids(run(it, 1).admitted) == [0, 1]
    assert ids(run(it).admitted) == [2]
    it.num_cache_tokens = 3
    with pytest.raises(InvariantBroken, match="71 places of the cache are taken, 3 are counted"):
        it.check()
    small.num_cache_tokens = 101
    with pytest.raises(UnsupportedParameter, match=r"needs 101 places.*has 100.*max_cache_tokens"):
        limits.refuse_misfit(small)


def test_cancel_removes_waiting_and_running_sequences_and_ignores_unknown_ids():
    it = scheduler(*(sequence(each) for each in range(6)))
    plan = run(it)
    assert ids(it.cancel([1, 5, 77])) == [1, 5]
    it.check()
    assert ids(it.cancel([1, 5])) == []
    assert plan.sequences[1].state is SequenceState.FINISHED
    assert ids(run(it).sequences) == [0, 2, 3, 4]


def test_a_sequence_that_can_never_fit_is_refused_with_numbers():
    LIMITS.refuse_misfit(sequence(0, num_tokens=20, num_rows=4))
    with pytest.raises(UnsupportedParameter, match=r"num_beams.*needs 5 rows.*runs 4"):
        LIMITS.refuse_misfit(sequence(0, num_rows=5))
    with pytest.raises(PromptTooLong, match=r"21 tokens.*takes 20.*max_step_tokens"):
        LIMITS.refuse_misfit(sequence(0, num_tokens=21))


def test_check_raises_when_counted_rows_differ_from_running_rows():
    it = scheduler(sequence(0))
    run(it)
    it.num_rows = 3
    with pytest.raises(InvariantBroken, match="1 rows run, 3 are counted"):
        it.check()


ARRIVAL = st.tuples(
    st.integers(0, 6),  # steps after the one before
    st.integers(1, 20),  # tokens
    st.integers(1, 4),  # rows
    st.sampled_from("ab"),  # group
    st.integers(1, 4),  # steps that it needs
    st.none() | st.integers(0, 8),  # steps after which it is cancelled
)


# Whoever leads takes later ones of its group along, and those may need longer than it.
COMPANY = [
    (0, 1, 1, "b", 1, None),
    (0, 1, 1, "a", 1, None),
    (0, 1, 1, "b", 2, None),
]


@given(st.lists(ARRIVAL, max_size=25))
@example(COMPANY)
def test_every_sequence_ends_once_and_in_time_in_any_order_of_arrival(arrivals):
    """Under any arrivals, lengths and cancellations: the limits hold, one group runs at a
    time, and nobody waits for longer than the longest needs, as often as one came before it."""
    it = Scheduler(LIMITS)
    longest = max((arrival[4] for arrival in arrivals), default=0)
    steps_left = {id_: arrival[4] for id_, arrival in enumerate(arrivals)}
    arrives_at, at = {}, 0
    for id_, arrival in enumerate(arrivals):
        arrives_at[id_] = at = at + arrival[0]
    ended: list[int] = []
    step = 0
    while len(ended) < len(arrivals):
        for id_, (_, num_tokens, num_rows, group, _, cancelled_after) in enumerate(arrivals):
            if arrives_at[id_] == step:
                it.add([sequence(id_, num_tokens, num_rows, group)])
            if cancelled_after is not None and arrives_at[id_] + cancelled_after == step:
                ended += ids(it.cancel([id_]))
        it.check()
        plan = it.next_step()
        it.check()
        if plan is not None:
            assert plan.num_rows <= LIMITS.max_sequences
            assert plan.num_tokens <= LIMITS.max_step_tokens
            assert len({each.batch_key for each in plan.sequences}) == 1
            for each in plan.admitted:
                assert step - arrives_at[each.id] <= longest * each.id
            results = []
            for each in plan.sequences:
                steps_left[each.id] -= 1
                results.append(Completion(each) if steps_left[each.id] == 0 else None)
            ended += [each.sequence.id for each in it.apply(plan, results)]
            it.check()
        step += 1
    assert sorted(ended) == list(range(len(arrivals)))
    assert it.next_step() is None
