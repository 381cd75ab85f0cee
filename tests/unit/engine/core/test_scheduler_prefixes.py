"""Scheduler: prompts that begin alike."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.scheduler import MAX_LOOK_AHEAD, Scheduler, StepPlan
from engine.core.sequence import Sequence
from engine.kv_cache.prefix_cache import PrefixCache
from tests.samples.scheduling import LIMITS, SLICED, ids, run, sliced


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


def test_a_sequence_whose_prefix_is_being_read_joins_in_the_next_step():
    prompts, it = Prompts(), Scheduler(SLICED)
    it.add(prompts.sequence(at, name) for at, name in enumerate("aabab"))
    first = prompts.run(it)
    assert (ids(first.admitted), first.num_prompt_tokens) == ([0, 2], 2 * 106)
    second = prompts.run(it)
    assert (ids(second.admitted), second.num_prompt_tokens) == ([1, 3, 4], 3 * 10)
    assert (first.num_found_tokens, second.num_found_tokens) == (0, 3 * 96)


def test_a_short_shared_prefix_is_not_waited_for():
    prompts, it = Prompts(), Scheduler(SLICED)
    it.add(prompts.sequence(at, "a", num_shared=63) for at in range(3))
    assert ids(prompts.run(it).admitted) == [0, 1, 2]


def test_bulk_sequences_with_cached_prefixes_go_before_others_but_not_before_the_first():
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
def test_a_sequence_is_passed_by_at_most_the_look_ahead(arrivals, max_blocks):
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


def test_a_stream_of_shared_prefixes_cannot_starve_another_prompt():
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
