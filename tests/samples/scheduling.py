"""Sequences and steps for tests of the scheduler."""

from collections.abc import Hashable

from engine.core.completion import Completion
from engine.core.scheduler import Scheduler, StepLimits, StepPlan
from engine.core.sequence import Sequence
from engine.protocol.request import Request
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
