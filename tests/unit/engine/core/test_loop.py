"""The loop, moved step by step, with the fake engine."""

import itertools
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.fake import FakeBackend
from engine.errors import EngineBroken, InvariantBroken
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.engines import Bench


def bench(**settings) -> Bench:
    spec = EngineSpec(alias="demo", checkpoint="fake", engine="fake", **settings)
    return Bench(FakeBackend(spec), spec)


def request(id_: int, num_tokens: int = 3, text: str = "the tide turns the mill") -> Request:
    return Request(
        id=id_, task="generate", text=text, params=SamplingParams(max_new_tokens=num_tokens)
    )


def ids(things) -> list[int]:
    return [each.request_id if hasattr(each, "request_id") else each.id for each in things]


def test_a_short_answer_does_not_wait_for_a_long_one_and_a_newcomer_takes_its_place():
    it = bench(max_sequences=2)
    it.submit(request(0, 4), request(1, 2), request(2, 3))
    plans = [it.advance() for _ in range(5)]
    assert [ids(each.sequences) for each in plans] == [[0, 1], [0, 1], [0, 2], [0, 2], [2]]
    assert it.advance() is None
    assert ids(it.collect()) == [1, 0, 2]


def test_an_output_is_sent_right_after_the_step_that_finished_it():
    it = bench()
    it.submit(request(0, 1), request(1, 2))
    it.advance()
    assert ids(it.collect()) == [0]


def test_a_loop_with_nothing_to_do_runs_no_step():
    it = bench()
    assert it.advance() is None
    assert it.loop.num_steps == 0


def test_a_cancelled_request_leaves_at_the_next_step_wherever_it_was():
    it = bench(max_sequences=1)
    it.submit(request(0, 9), request(1, 9), request(2, 1))
    it.advance()
    it.tracker.cancel([0, 1])
    assert ids(it.advance().sequences) == [2]
    outputs = {each.request_id: each for each in it.finish()}
    assert [outputs[each].choices[0].finish_reason for each in (0, 1, 2)] == [
        "cancelled",
        "cancelled",
        "length",
    ]
    assert len(outputs) == 3


def test_a_request_cancelled_before_it_was_tokenized_is_answered_and_never_runs():
    it = bench()
    it.tracker.open([5])
    it.tracker.cancel([5])
    it.tokenizer.encode(request(5))
    assert it.advance() is None
    (output,) = it.collect()
    assert output.choices[0].finish_reason == "cancelled"


def test_a_refused_request_never_reaches_the_loop():
    it = bench(max_sequences=2)
    beams = Request(id=1, task="generate", text="a", params=SamplingParams(num_beams=3))
    it.submit(request(0, text=" \n"), beams)
    assert it.advance() is None
    assert [each.failure.code for each in it.collect()] == ["empty_prompt", "unsupported_parameter"]


def test_an_unforeseen_error_of_a_step_fails_every_request_that_shared_it():
    it = bench()
    it.submit(request(0), request(1))

    def run(plan):
        raise ZeroDivisionError("the tide turns the mill")

    it.loop.engine.run = run
    outputs = it.finish()
    assert ids(outputs) == [0, 1]
    for output in outputs:
        assert output.failure.code == "generation_failed"
        assert "ZeroDivisionError" in output.failure.message
        assert "tide" not in output.failure.message


def leave_a_row(it: Bench) -> None:
    it.loop.engine.rows[99] = []


def count_a_row(it: Bench) -> None:
    it.scheduler.num_rows = 1


def cancel_a_stranger(it: Bench) -> None:
    it.tracker._cancelled.add(99)


@pytest.mark.parametrize("spoil", [leave_a_row, count_a_row, cancel_a_stranger])
def test_an_idle_loop_checks_backend_scheduler_and_tracker(spoil):
    it = bench()
    it.submit(request(0))
    it.finish()
    spoil(it)
    with pytest.raises(InvariantBroken):
        it.loop.run()


def test_an_idle_loop_whose_state_agrees_waits_until_it_is_closed():
    it = bench()
    it.submit(request(0))
    running = Thread(target=it.loop.run)
    running.start()
    taken = it.outbox.take()
    while taken is not None and not taken[0]:
        taken = it.outbox.take()
    assert running.is_alive()
    it.inbox.close()
    running.join(60)
    assert not running.is_alive()


def test_a_broken_engine_ends_the_loop():
    it = bench()
    it.submit(request(0))

    def run(plan):
        raise EngineBroken("gone")

    it.loop.engine.run = run
    with pytest.raises(EngineBroken):
        it.advance()


def test_an_error_while_tokenizing_fails_that_request_alone():
    it = bench()
    whole = it.tokenizer.engine.encode
    it.tokenizer.engine.encode = lambda each, *rest: 1 / 0 if each.id == 0 else whole(each, *rest)
    it.submit(request(0), request(1))
    failed, answered = it.finish()
    assert (failed.request_id, failed.failure.code) == (0, "generation_failed")
    assert answered.failure is None


def test_an_error_while_detokenizing_fails_the_request():
    it = bench()
    it.submit(request(0))
    it.writer.engine.decode = lambda completion: 1 / 0
    (output,) = it.finish()
    assert output.failure.code == "generation_failed"


def test_progress_counts_steps_tokens_and_busy_seconds():
    it = bench(max_sequences=2)
    ticks = itertools.count()
    it.loop.clock = lambda: float(next(ticks))
    it.submit(request(0, 2), request(1, 2), request(2, 2))
    it.advance()
    it.advance()
    it.collect()
    assert it.progress.num_waiting == 1
    assert it.progress.num_running == 0
    it.finish()
    assert it.progress.num_steps == 4
    assert it.progress.num_prompt_tokens == 3 * 5
    assert it.progress.num_completion_tokens == 3 * 2
    assert it.progress.busy_seconds == 4.0


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 3), st.none() | st.integers(0, 5)), max_size=12
    ),
    st.integers(1, 3),
)
def test_every_request_gets_exactly_one_output_and_a_batch_changes_no_answer(arrivals, rows):
    """arrivals: (tokens, steps before it is sent, steps until it is cancelled)"""
    it = bench(max_sequences=rows)
    outputs = []
    for id_, (num_tokens, num_steps, cancelled_after) in enumerate(arrivals):
        for _ in range(num_steps):
            it.advance()
        it.submit(request(id_, num_tokens, f"request {id_} of many"))
        if cancelled_after is not None:
            for _ in range(cancelled_after):
                it.advance()
            it.tracker.cancel([id_])
        outputs += it.collect()
    outputs += it.finish()
    assert sorted(ids(outputs)) == list(range(len(arrivals)))
    for output in outputs:
        num_tokens, _, cancelled_after = arrivals[output.request_id]
        if output.choices[0].finish_reason == "cancelled":
            assert cancelled_after is not None
        else:
            alone = bench()
            alone.submit(request(0, num_tokens, f"request {output.request_id} of many"))
            (expected,) = alone.finish()
            assert output.choices == expected.choices
