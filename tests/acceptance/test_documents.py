"""The demo's documents, read by the demo's models."""

import itertools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from engine.protocol.engine_spec import EngineSpec
from examples.world.reports import make_report
from examples.world.sentences import make_sentence
from examples.world.split import held_out
from tests.running.recipe_runs import run_recipe
from worker.engines.engine_client import EngineClient
from worker.recipes.recipe import Work
from worker.recipes.summarize import summarize
from worker.recipes.translate import translate

EXAMPLES = Path(__file__).parents[2] / "examples"
SEED = 20_001  # of `examples/make_nightly.py` for documents
NUM_SENTENCES = 12
NUM_REPORTS = 12 * 14  # a year's
NUM_WEEKS = 20


@pytest.fixture(scope="module")
def translator() -> Iterator[EngineClient]:
    yield from engine("translator")


@pytest.fixture(scope="module")
def summarizer() -> Iterator[EngineClient]:
    yield from engine("summarizer")


def engine(name: str) -> Iterator[EngineClient]:
    client = EngineClient(
        EngineSpec(alias=name, checkpoint=str(EXAMPLES / "models" / name), threads=1)
    )
    try:
        client.start()
        yield client
    finally:
        client.stop()


def work_of(client: EngineClient, task: str, contract: dict[str, Any]) -> Work:
    return Work(UUID(int=1), task, contract, client.card, itertools.count(), languages=("en>fr",))


def test_a_letter_is_translated_sentence_by_sentence_in_its_own_layout(
    translator: EngineClient,
) -> None:
    letter = (EXAMPLES / "nightly" / "letter.md").read_text()
    expected = letter
    for sentence in islice(held_out(make_sentence, SEED), NUM_SENTENCES):
        assert expected.count(sentence.english) == 1
        expected = expected.replace(sentence.english, sentence.french)
    contract = {"text": letter, "source_language": "en", "target_language": "fr"}
    work = work_of(translator, "translate", contract)
    answer, answered = run_recipe(translator, translate(work))
    assert answer.output == expected
    assert len(answered) == NUM_SENTENCES
    document = answer.provenance["document"]
    assert document["num_sentences"] == document["num_translated"] == NUM_SENTENCES
    assert document["missed"] == document["empty"] == []


def test_a_yearbook_is_summarized_and_none_of_it_is_left_out(summarizer: EngineClient) -> None:
    yearbook = (EXAMPLES / "nightly" / "yearbook.md").read_text()
    work = work_of(summarizer, "summarize", {"text": yearbook})
    answer, answered = run_recipe(summarizer, summarize(work))
    assert answer.coverage is not None
    num_parts = answer.coverage["parts"]
    assert num_parts > 20
    assert answer.coverage["left_out"] == []
    assert answer.coverage["parts_cut"] == 0
    assert answer.coverage["source_characters"] == len(yearbook)
    parts = [(request.text or "", output) for request, output in answered[:num_parts]]
    assert " ".join(text for text, _ in parts).split() == yearbook.split()
    assert all(output.choices[0].text.strip() for _, output in parts)
    reports = list(islice(held_out(make_report, SEED), NUM_REPORTS))
    # A part holds eight reports, and the toy says two to five sentences of it. What it keeps of
    # the facts is measured in docs/documents.md.
    num_kept = 0
    for report in reports:
        [summary] = [output.choices[0].text for text, output in parts if report.text in text]
        num_kept += sum(fact in summary for fact in report.facts)
    assert num_kept >= 0.2 * sum(len(report.facts) for report in reports)
    assert answer.finish_reason == "stop"
    assert answer.output.endswith(".")


def test_summaries_of_a_report_of_twenty_parts_state_every_key_fact(
    summarizer: EngineClient,
) -> None:
    text = (EXAMPLES / "nightly" / "weeks.md").read_text()
    reports = list(islice(held_out(make_report, SEED + 1), NUM_WEEKS))
    work = work_of(summarizer, "summarize", {"text": text, "by_section": True})
    answer, answered = run_recipe(summarizer, summarize(work))
    assert answer.coverage is not None
    assert answer.coverage["parts"] == NUM_WEEKS
    assert answer.coverage["left_out"] == []
    parts = [(request.text or "", output) for request, output in answered[:NUM_WEEKS]]
    assert " ".join(part for part, _ in parts).split() == text.split()
    for report, (part, output) in zip(reports, parts, strict=True):
        assert report.text in part
        summary = output.choices[0].text
        assert [fact for fact in report.facts if fact not in summary] == []
    assert answer.finish_reason == "stop"
