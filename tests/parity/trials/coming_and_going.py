"""Requests that come, go and fail while others run in flight."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints

GREEDY = SamplingParams(max_new_tokens=12, do_sample=False)

# One of each way to know a position and to keep keys, and one whose requests are beams.
KINDS = ("t5", "bart", "marian", "m2m100", "gpt2", "llama", "qwen3", "opt", "gpt_neox")


def request(
    id_: int, text: str, task: str = "generate", params: SamplingParams = GREEDY
) -> Request:
    return Request(id=id_, task=task, text=text, params=params)


ARRIVAL = st.tuples(
    st.integers(0, 5),  # steps after the one before
    st.integers(0, 65),  # which of the requests
    st.none() | st.none() | st.integers(0, 12),  # steps after which it is cancelled
)


def let_come_and_go(bench, asked, arrivals) -> None:
    """Each answer must be that of its request alone, or that it was cancelled."""
    first_id = 1 + max((each.id for each in seen_by(bench)), default=0)
    expected, cancelled_at = {}, {}
    step, waiting = 0, []
    for id_, (delay, which, cancelled_after) in enumerate(arrivals, start=first_id):
        step += delay
        one, answer = asked[which]
        waiting.append((step, replace(one, id=id_)))
        expected[id_] = answer
        if cancelled_after is not None:
            cancelled_at[id_] = step + cancelled_after
    step = 0
    while True:
        due = [each for at, each in waiting if at <= step]
        waiting = [(at, each) for at, each in waiting if at > step]
        bench.submit(*due)
        bench.tracker.cancel([id_ for id_, at in cancelled_at.items() if at == step])
        step += 1
        if bench.advance() is None and not waiting:
            break
    outputs = {each.request_id: each for each in bench.collect()}
    assert outputs.keys() == expected.keys()
    for id_, output in outputs.items():
        got = [list(each.token_ids) for each in output.choices]
        if [each.finish_reason for each in output.choices] == ["cancelled"]:
            assert id_ in cancelled_at
        else:
            assert got == expected[id_]


def seen_by(bench):
    return [each for plan in bench.plans for each in plan.sequences]


# When a step fails

CULPRIT = 3


def prompts() -> list[Request]:
    return [request(at, f"{at} {text}") for at, text in enumerate(checkpoints.sentences(2) * 4)]


def break_when(bench, name: str, fails) -> None:
    """Make a forward pass raise for which `fails` returns an error; it is given the ids."""
    runner = bench.loop.engine.in_flight.runner
    whole = getattr(runner, name)

    def run(first, *rest):
        running_sequences = bench.loop.engine.in_flight.running_sequences
        ids = {each.sequence.id for each in running_sequences.values() if each.cache in first}
        ids |= {each.id for each in first if hasattr(each, "prompt_ids")}
        result = whole(first, *rest)
        if (error := fails(ids)) is not None:
            raise error
        return result

    setattr(runner, name, run)
