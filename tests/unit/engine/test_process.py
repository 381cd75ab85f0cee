"""The engine process with the fake engine, as its parent sees it."""

import os
import signal
import subprocess
import sys

import pytest

from engine.backends.fake import CRASH_STATUS
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.engines import Child, child

ENDLESS = 1_000_000_000  # tokens


def spec(**settings) -> EngineSpec:
    return EngineSpec(alias="demo", checkpoint="fake", engine="fake", **settings)


def request(id_: int, num_tokens: int = 3, text: str = "the tide turns the mill") -> Request:
    return Request(
        id=id_, task="generate", text=text, params=SamplingParams(max_new_tokens=num_tokens)
    )


def test_thousands_of_requests_are_answered_once_each_and_counted():
    num = 4000
    with child(spec()) as it:
        outputs = []
        for at in range(0, num, 250):
            it.send(*(request(id_) for id_ in range(at, at + 250)))
            outputs += it.receive_outputs()
        outputs += it.collect(num - len(outputs))
        assert sorted(each.request_id for each in outputs) == list(range(num))
        assert all(each.failure is None for each in outputs)
        assert it.progress.num_completion_tokens == 3 * num
        assert it.stop() == 0


def start_endless(it: Child) -> None:
    """Request 0 runs and does not end; returns when it does run."""
    it.send(request(0, ENDLESS), request(-1, 1))
    (output,) = it.collect(1)
    assert output.request_id == -1
    assert it.progress.num_running == 1


def test_a_cancelled_request_is_answered_as_such_while_others_run_on():
    with child(spec(max_sequences=2)) as it:
        start_endless(it)
        it.send(request(1, ENDLESS), request(2, ENDLESS), request(3))
        it.cancel(0, 1, 2)
        outputs = {each.request_id: each for each in it.collect(4)}
        assert [outputs[each].choices[0].finish_reason for each in (0, 1, 2, 3)] == [
            "cancelled",
            "cancelled",
            "cancelled",
            "length",
        ]
        it.cancel(0, 1, 2, 3, 99)  # all answered, or never sent
        it.send(request(4))
        (output,) = it.collect(1)
        assert output.request_id == 4


def test_a_parent_that_dies_takes_the_process_with_it():
    with child(spec()) as it:
        start_endless(it)
        it.pipe.close()
        assert it.wait() == 0


def test_a_parent_that_dies_is_noticed_while_nothing_more_is_read():
    with child(spec(max_held=1)) as it:
        start_endless(it)
        it.send(request(1))
        it.pipe.close()
        assert it.wait() == 0


def test_a_parent_that_dies_before_it_says_what_to_load_leaves_nothing_behind():
    with child(spec()) as it:
        it.pipe.close()
        assert it.wait() == 0


def test_stop_ends_it_after_the_present_step():
    with child(spec()) as it:
        start_endless(it)
        assert it.stop() == 0


def test_an_engine_ignores_signals_of_the_terminal():
    with child(spec()) as it:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(it.process.pid, number)
        it.send(request(0))
        assert len(it.collect(1)) == 1
        assert it.stop() == 0


def test_a_crash_can_be_rehearsed():
    with child(spec(fake_crash_on="bad grain")) as it:
        it.send(request(0), request(1, text="a sack of bad grain"))
        assert it.wait() == CRASH_STATUS


def test_no_text_of_a_user_is_logged():
    secret = "a secret of the keeper"
    secrets = spec(fake_fail_on="secret", fake_crash_on="secret crash")
    with child(secrets, is_forked=False) as it:
        it.send(request(0, text=secret), request(1, text=" "))
        assert {each.failure.code for each in it.collect(2)} == {
            "generation_failed",
            "empty_prompt",
        }
        it.send(request(2, text="a secret crash of the keeper"))
        it.wait()
        log = it.process.stderr.read().decode()
    assert "engine ready alias=demo" in log
    assert "keeper" not in log


@pytest.mark.parametrize("engine", ["exact", "auto"])
def test_a_checkpoint_that_is_not_there_is_said_in_one_sentence(engine):
    with child(EngineSpec(alias="reports", checkpoint="./no/such", engine=engine)) as it:
        message = it.unloadable.message
        assert it.wait() == 1
    assert "'./no/such' of model 'reports' is not a folder here" in message
    assert "\n" not in message


def test_a_checkpoint_that_is_not_there_is_refused_before_a_model_library_is_loaded():
    program = """
import sys
from engine.errors import Unloadable
from engine.process import load_engine
from engine.protocol.engine_spec import EngineSpec
try:
    load_engine(EngineSpec(alias="reports", checkpoint="./no/such"))
except Unloadable:
    print(*sys.modules)
"""
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert "engine.process" in loaded
    assert not {"torch", "transformers"} & set(loaded)


def test_many_start_and_stop_at_once():
    children = [Child(spec()) for _ in range(8)]
    try:
        for it in children:
            it.send(request(0))
        assert all(len(it.collect(1)) == 1 for it in children)
        assert [it.stop() for it in children] == [0] * 8
    finally:
        for it in children:
            it.close()
