from collections.abc import Hashable
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.completion import Completion
from engine.core.scheduler import MAX_LOOK_AHEAD, MAX_OVERTAKING, Scheduler, StepLimits, StepPlan
from engine.core.sequence import Sequence, SequenceState
from engine.core.slice_size import MIN_TOKENS
from engine.errors import InvariantBroken, PromptTooLong, UnsupportedParameter
from engine.kv_cache.prefix_cache import PrefixCache
from engine.protocol.messages import Request
from engine.sampling.resolve_params import ResolvedParams

LIMITS = StepLimits(max_sequences=4, max_step_tokens=20)


def sequence(
    id_: int,
    num_tokens: int = 1,
    num_rows: int = 1,
    batch_key: Hashable = "a",
    is_interactive: bool = False,
) -> Sequence:
    beams = ResolvedParams(max_new_tokens=5, num_beams=num_rows)
    return Sequence(
        request=Request(id=id_, task="generate", text="", is_interactive=is_interactive),
        prompt_ids=tuple(range(num_tokens)),
        settings=beams,
        num_rows=num_rows,
        num_prefill_tokens=num_tokens,
        batch_key=batch_key,
    )


def scheduler(*sequences: Sequence) -> Scheduler:
    made = Scheduler(LIMITS)
    made.add(sequences)
    return made


def ids(sequences) -> list[int]:
    return [each.id for each in sequences]


def run(scheduler: Scheduler, *finished: int) -> StepPlan | None:
    """One step in which those with the given ids finish."""
    plan = scheduler.next_step()
    if plan is not None:
        scheduler.apply(
            plan, [Completion(each) if each.id in finished else None for each in plan.sequences]
        )
    scheduler.check()
    return plan


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
def test_whatever_arrives_everything_ends_once_and_in_time(arrivals):
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


# Long prompts in slices

SLICED = StepLimits(max_sequences=8, max_step_tokens=4000, max_admitted_tokens=512)


def sliced(id_: int, num_tokens: int, **options) -> Sequence:
    """One whose backend reads prompts in slices."""
    made = sequence(id_, num_tokens, **options)
    made.num_read_tokens = 0
    return made


def learned(it: Scheduler, num_tokens: int) -> Scheduler:
    """The scheduler, after steps in which so many prompt tokens doubled the time."""
    it.slice_size.decode_seconds, it.slice_size.token_seconds = 0.1, 0.1 / num_tokens
    return it


def read_of(plan: StepPlan) -> dict[int, int]:
    return {each.id: each.num_read_tokens for each in (*plan.reading, *plan.admitted)}


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


def test_a_long_prompt_is_read_at_once_where_nobody_decodes():
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
def test_whatever_arrives_is_read_to_the_end_within_the_limits(arrivals, num_tokens):
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


# Prompts that begin alike


class Prompts:
    """Sequences whose prompts share what their names say, and what the cache has of them."""

    def __init__(self, max_blocks: int = 1000) -> None:
        self.cache: PrefixCache[int] = PrefixCache(32, max_blocks)

    def sequence(self, id_: int, beginning: str, num_shared: int = 96, **options) -> Sequence:
        """One that begins with as many tokens that all have who begin so."""
        shared = tuple(1000 * ord(beginning) + each for each in range(num_shared))
        made = sliced(id_, num_shared + 10, **options)
        made.prompt_ids = (*shared, *range(10**6 * id_, 10**6 * id_ + 10))
        made.blocks = self.cache.blocks_of(made.prompt_ids)
        return made

    def run(self, it: Scheduler, *finished: int) -> StepPlan:
        plan = run(it, *finished)
        for each in (*plan.reading, *plan.admitted):
            self.cache.use(each.blocks)
            self.cache.keep(each.blocks, each.num_read_tokens, lambda number: number)
        return plan


def test_who_begins_as_a_prompt_that_is_read_now_joins_in_the_next_step():
    prompts, it = Prompts(), Scheduler(SLICED)
    it.add(prompts.sequence(at, name) for at, name in enumerate("aabab"))
    first = prompts.run(it)
    assert (ids(first.admitted), first.num_prompt_tokens) == ([0, 2], 2 * 106)
    second = prompts.run(it)
    assert (ids(second.admitted), second.num_prompt_tokens) == ([1, 3, 4], 3 * 10)
    assert (first.num_found_tokens, second.num_found_tokens) == (0, 3 * 96)


def test_short_beginnings_are_not_waited_for():
    prompts, it = Prompts(), Scheduler(SLICED)
    it.add(prompts.sequence(at, "a", num_shared=63) for at in range(3))
    assert ids(prompts.run(it).admitted) == [0, 1, 2]


def test_bulk_sequences_whose_beginnings_were_read_go_before_others_but_not_before_the_first():
    prompts, it = Prompts(), Scheduler(replace(LIMITS, max_step_tokens=500))
    names = "abcdabcdabcd"
    it.add(prompts.sequence(at, name, num_rows=2) for at, name in enumerate(names))
    order = []
    while it.waiting:
        plan = prompts.run(it, *range(len(names)))
        order.append(ids(plan.admitted))
    # Two in a step, for each has two rows.
    assert order == [[0, 1], [2, 4], [3, 5], [6, 7], [8, 9], [10, 11]]


def test_interactive_sequences_keep_their_order_and_come_first():
    prompts, it = Prompts(), Scheduler(replace(LIMITS, max_step_tokens=500))
    it.add([prompts.sequence(0, "a", num_rows=4), prompts.sequence(1, "b")])
    prompts.run(it, 0)
    it.add([prompts.sequence(2, "a"), prompts.sequence(3, "c", is_interactive=True)])
    it.add([prompts.sequence(4, "a", is_interactive=True), prompts.sequence(5, "a")])
    assert ids(prompts.run(it, 1, 3, 4).admitted) == [3, 4, 1]  # 4 reads for the others
    assert ids(prompts.run(it).admitted) == [2, 5]


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 4)), min_size=1, max_size=300),
    st.integers(0, 12),
)
@settings(deadline=None)
def test_nobody_is_passed_by_more_than_are_looked_at(arrivals, max_blocks):
    """Whatever they begin with, and however soon it is forgotten again."""
    prompts, it = Prompts(max_blocks), Scheduler(replace(LIMITS, max_step_tokens=500))
    for id_, (name, num_rows) in enumerate(arrivals):
        it.add([prompts.sequence(id_, name, num_rows=num_rows)])
    order: list[int] = []
    while it.waiting:
        first = next(iter(it.waiting))
        plan = prompts.run(it, *range(len(arrivals)))
        assert first in ids(plan.admitted) or not plan.admitted
        assert plan.num_tokens <= 500
        order += ids(plan.admitted)
    assert sorted(order) == list(range(len(arrivals)))
    for at, id_ in enumerate(order):
        assert sum(each > id_ for each in order[:at]) <= 2 * MAX_LOOK_AHEAD


def test_a_stream_that_shares_cannot_keep_one_waiting_that_does_not():
    prompts, it = Prompts(), Scheduler(replace(LIMITS, max_sequences=1, max_step_tokens=500))
    it.add(prompts.sequence(at, "a") for at in range(3))
    prompts.run(it, 0)
    prompts.run(it, 1)
    it.add([prompts.sequence(3, "z")])
    admitted, next_id = [], 4
    while 3 not in admitted:
        it.add([prompts.sequence(next_id, "a"), prompts.sequence(next_id + 1, "a")])
        admitted += ids(prompts.run(it, *range(1000)).admitted)
        next_id += 2
        assert next_id < 20
