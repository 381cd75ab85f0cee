import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PromptTooLong
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Sized
from engine.protocol.messages import (
    Cancel,
    Load,
    LoadFailed,
    Outputs,
    Ready,
    Run,
    Stop,
    from_bytes,
    to_bytes,
)
from engine.protocol.output import Choice, Output, RequestFailure
from engine.protocol.progress import Progress
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from tests.samples.model_cards import FAKE_CARD

ANY_TEXT = st.text(st.characters(codec=None))  # lone surrogates and NUL, too
PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.none() | st.integers(1, 9),
    do_sample=st.none() | st.booleans(),
    temperature=st.none() | st.floats(0, 2),
    early_stopping=st.none() | st.booleans(),
    seed=st.none() | st.integers(0, 2**63),
    stop=st.lists(ANY_TEXT).map(tuple),
)
REQUESTS = st.builds(
    Request,
    id=st.integers(0),
    task=st.sampled_from(["summarize", "translate", "generate", "chat"]),
    text=st.none() | ANY_TEXT,
    messages=st.lists(st.builds(ChatTurn, ANY_TEXT, ANY_TEXT)).map(tuple),
    source_language=st.none() | ANY_TEXT,
    target_language=st.none() | ANY_TEXT,
    params=PARAMS,
)


@given(st.lists(REQUESTS).map(tuple))
def test_requests_cross_unchanged(requests):
    assert from_bytes(to_bytes(Run(requests))) == Run(requests)


def test_token_ids_stay_within_the_engine():
    sent = Choice("two words", "length", 2, (7, 9))
    frame = Outputs((Output(request_id=1, choices=(sent,)),), Progress())
    (output,) = from_bytes(to_bytes(frame)).outputs
    assert output.choices == (Choice("two words", "length", 2),)


def test_outputs_cross_unchanged():
    choice = Choice("two words\ud800", "length", 2)
    failure = RequestFailure.of(PromptTooLong(9, 4, "shorten it"))
    frame = Outputs(
        (
            Output(request_id=1, choices=(choice, choice), prompt_tokens=3, settings={"seed": 5}),
            Output(request_id=2, failure=failure),
        ),
        Progress(num_waiting=1, num_running=2, num_steps=3, busy_seconds=0.5),
    )
    assert from_bytes(to_bytes(frame)) == frame


@pytest.mark.parametrize(
    "frame",
    [
        Load(EngineSpec(alias="a", checkpoint="b", languages=("en",), prompt={"chat": "{text}"})),
        Cancel((1, 2)),
        Stop(),
        LoadFailed("no such folder"),
        Ready(
            replace(FAKE_CARD, alias="a", checkpoint="b", versions={"torch": "2"}),
            Sized(EngineSpec(alias="a", checkpoint="b", max_sequences=3), {"threads": "why"}),
        ),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_every_other_frame_crosses_unchanged(frame):
    assert from_bytes(to_bytes(frame)) == frame


def test_a_parameter_that_is_not_set_does_not_cross():
    request = Request(
        id=1, task="generate", text="x", params=SamplingParams(seed=0, do_sample=False)
    )
    (sent,) = json.loads(to_bytes(Run((request,))))["requests"]
    assert sent["params"] == {"seed": 0, "do_sample": False}


def test_a_frame_of_an_unknown_type_is_our_mistake():
    with pytest.raises(ValueError, match="'song'"):
        from_bytes(b'{"type": "song"}')


def test_what_the_parent_imports_loads_no_model_library():
    code = (
        "import sys, engine.protocol.messages, engine.protocol.engine_spec, engine.backends.fake, "
        "engine.core.loop; print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not {b"torch", b"transformers", b"langcodes", b"celery"} & set(modules.split())
