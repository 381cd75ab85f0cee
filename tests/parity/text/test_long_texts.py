"""Huge texts are refused with numbers, and hold up no interactive request.

The latter in a real engine process, by the order of events: the answer to the interactive request
comes before anything is said of the texts that were sent before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition

import pytest
import transformers

from engine.backends.loader import load
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.engines import Bench
from worker.engines.engine_client import EngineClient

PATIENCE_SECONDS = 120
HUGE = {
    "words": "the mill " * 430_000,
    "one word": "harbourmill" * 354_000,
    "Chinese": "今天天气很好磨坊港口河流报告" * 278_000,
}


class Outputs:
    def __init__(self) -> None:
        self.listed: list[Output] = []
        self.changed = Condition()

    def add(self, output: Output) -> None:
        with self.changed:
            self.listed.append(output)
            self.changed.notify_all()

    def wait_for(self, number: int) -> list[Output]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.listed) >= number, PATIENCE_SECONDS)
            return list(self.listed)


def spec_of(folder: Path, **settings: object) -> EngineSpec:
    return EngineSpec(alias="m", checkpoint=str(folder), device="cpu", threads=1, **settings)  # type: ignore[arg-type]


@contextmanager
def engine_process(spec: EngineSpec) -> Iterator[EngineClient]:
    client = EngineClient(spec)
    client.start()
    try:
        yield client
    finally:
        client.stop()


def request(id_: int, text: str, is_interactive: bool = False) -> Request:
    params = SamplingParams(max_new_tokens=3, do_sample=False)
    return Request(id=id_, task="generate", text=text, params=params, is_interactive=is_interactive)


def test_an_interactive_answer_comes_before_the_refusals_of_huge_texts(folder_of):
    """The limit is such that some forty slices of a text are tokenized to refuse it."""
    outputs = Outputs()
    spec = spec_of(folder_of("t5"), max_input_tokens=60_000, max_step_tokens=60_000)
    with engine_process(spec) as client:
        client.submit([request(at, text) for at, text in enumerate(HUGE.values())], outputs.add)
        client.submit([request(9, "the mill", is_interactive=True)], outputs.add)
        first, *rest = outputs.wait_for(len(HUGE) + 1)
    assert first.request_id == 9
    assert first.failure is None
    codes = [each.failure.code for each in rest if each.failure is not None]
    assert codes == ["prompt_too_long"] * len(HUGE)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "m2m100"])
def test_huge_texts_are_refused_with_a_number_of_tokens_that_they_have(kind, folder_of):
    spec = spec_of(folder_of(kind))
    bulk = [request(at, text) for at, text in enumerate(HUGE.values())]
    by_id = Bench(load(spec), spec).answers([*bulk, request(9, "the mill", is_interactive=True)])
    assert by_id[9].failure is None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of(kind))
    for each in bulk:
        failure = by_id[each.id].failure
        assert failure is not None
        assert failure.code == "prompt_too_long"
        least, most = map(
            int, re.findall(r"at least (\d+) tokens.* takes (\d+)", failure.message)[0]
        )
        # As many are in the slice that was looked at, and so in the whole.
        assert most < least <= len(tokenizer(each.text[:16_384])["input_ids"])


def test_a_model_that_names_no_limit_is_bounded_by_its_step(folder_of, tmp_path):
    folder = tmp_path / "t5"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("t5"))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder_of("t5"))
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    spec = spec_of(folder, max_step_tokens=500)
    engine = load(spec)
    assert engine.card.max_context_tokens is None
    output = Bench(engine, spec).answers([request(0, HUGE["one word"])])[0]
    assert output.failure is not None
    assert re.search(
        r"at least \d+ tokens; this model takes 500; .*max_step", output.failure.message
    )
