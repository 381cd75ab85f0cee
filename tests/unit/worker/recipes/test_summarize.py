"""Whole documents through a real engine process: nothing is left out, nothing done twice."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from db.outcome import Answer
from db.states import JobState
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from tests.running.attempts import CountingClient, Run
from worker.documents.words import count_words, first_words
from worker.engines.engine_client import EngineClient

CONTEXT = 64  # words of a prompt, to the fake engine
REPORT = "\n\n".join(
    f"# Part {part}\n\n" + " ".join(f"Sentence {line} of part {part} is here." for line in range(9))
    for part in range(20)
)


@pytest.fixture(scope="module")
def engine() -> Iterator[CountingClient]:
    spec = EngineSpec(
        alias="fake",
        checkpoint="fake",
        engine="fake",
        max_input_tokens=CONTEXT,
        max_sequences=4,
        fake_fail_on="unspeakable",
    )
    client = CountingClient(spec)
    client.start()
    yield client
    client.stop()


@pytest.fixture
def client(engine: CountingClient) -> CountingClient:
    engine.asked, engine.most_held = [], 0
    return engine


def coverage(answer: Answer) -> dict[str, Any]:
    assert answer.coverage is not None
    return answer.coverage


def test_a_text_that_fits_is_one_request_without_segments(client: CountingClient) -> None:
    run = Run(client, {"text": "three words long"})
    answer = run.answer()
    assert len(client.asked) == 1
    assert run.kept == {}
    assert coverage(answer) == {
        "strategy": "single",
        "parts": 1,
        "rounds": 1,
        "source_characters": 16,
        "source_tokens": 3,
        "left_out": [],
        "left_out_characters": 0,
        "parts_cut": 0,
    }


def test_a_long_document_is_read_in_parts_that_are_all_of_it(client: CountingClient) -> None:
    answer = Run(client, {"text": REPORT}).answer()
    tried, *parts = client.generated
    assert tried.text == REPORT
    num_parts = coverage(answer)["parts"]
    source = [each.text for each in parts[:num_parts]]
    assert [word for text in source for word in text.split()] == REPORT.split()
    lengths = [len(text.split()) for text in source]
    assert max(lengths) <= CONTEXT
    assert min(lengths) > CONTEXT // 4, "no part is a crumb"
    assert coverage(answer)["strategy"] == "map_reduce"
    assert coverage(answer)["source_tokens"] == len(REPORT.split())
    assert coverage(answer)["left_out_characters"] == answer.left_out_characters == 0
    assert coverage(answer)["rounds"] >= 2
    assert answer.prompt_tokens == sum(len(each.text.split()) for each in parts)


def test_every_summary_of_a_part_is_read_in_the_next_round(client: CountingClient) -> None:
    run = Run(client, {"text": REPORT, "max_new_tokens": 40})
    answer = run.answer()
    outputs = [
        Output.from_json(run.kept[position]["output"]).choices[0] for position in sorted(run.kept)
    ]
    num_parts = coverage(answer)["parts"]
    said = [word for choice in outputs[:num_parts] for word in choice.text.split()]
    read = [
        word for each in client.generated[1 + num_parts :] for word in (each.text or "").split()
    ]
    assert read[: len(said)] == said
    assert all(choice.completion_tokens <= CONTEXT // 4 for choice in outputs[:-1])
    assert outputs[-1].completion_tokens == 40, "the last has the length that was asked for"
    assert coverage(answer)["parts_cut"] == num_parts


@pytest.mark.parametrize("strategy", ["auto", "map_reduce", "refine", "truncate"])
@pytest.mark.parametrize(
    "text",
    [
        "word " * 5_000,
        "x" * 3_000 + " " + "y " * 200,
        "\r\n\r\n".join(["a line of six words here"] * 60),
        " " * 2_000 + "one " * 80 + "\n" * 2_000,
        "今天天气很好。" * 50 + " " + "k " * 100,
    ],
)
def test_texts_of_every_shape_get_an_answer(
    client: CountingClient, strategy: str, text: str
) -> None:
    answer = Run(client, {"text": text, "strategy": strategy, "max_new_tokens": 5}).answer()
    assert answer.output
    assert all(
        len((each.text or "").split()) <= CONTEXT for each in client.generated[strategy == "auto" :]
    )
    if strategy != "truncate":
        assert answer.left_out_characters == 0


BOOK = "\n\n".join(
    f"# Chapter {chapter}\n\n"
    + "\n\n".join(
        f"## Section {section}\n\n"
        + " ".join(f"Line {line} of {chapter} {section} is here." for line in range(30))
        for section in range(3)
    )
    for chapter in range(4)
)


@pytest.mark.parametrize("strategy", ["map_reduce", "refine"])
def test_each_part_gets_its_headings_and_coverage_does_not_count_them(
    client: CountingClient, strategy: str
) -> None:
    contract = {"text": BOOK, "strategy": strategy, "heading_path": True, "max_new_tokens": 8}
    answer = Run(client, contract).answer()
    num_parts = coverage(answer)["parts"]
    parts = [each.text or "" for each in client.generated[:num_parts]]
    assert max(len(each.split()) for each in parts) <= CONTEXT
    of_two = [each for each in parts if "of 2 1 is" in each]
    assert len(of_two) > 2
    assert all("# Chapter 2\n\n## Section 1\n" in each for each in of_two)
    told = [each.partition("# Chapter")[2] for each in parts]
    assert all(told), "each has its chapter"
    assert coverage(answer)["left_out"] == []
    assert coverage(answer)["source_characters"] == len(BOOK)
    assert coverage(answer)["context_characters"] > 0
    if strategy == "map_reduce":  # of the other, a summary stands before each part, too
        words = [word for each in parts for word in each.split() if not word.startswith("#")]
        assert words.count("Line") == BOOK.count("Line")


@pytest.mark.parametrize("strategy", ["auto", "map_reduce"])
def test_each_section_can_be_a_part_of_its_own(client: CountingClient, strategy: str) -> None:
    text = "# Book\n\n" + "\n\n".join(
        f"## Section {section}\n\n" + "It is here. " * (3 if section % 5 else 40)
        for section in range(20)
    )
    contract = {"text": text, "strategy": strategy, "by_section": True, "max_new_tokens": 8}
    answer = Run(client, contract).answer()
    parts = [each.text or "" for each in client.generated[: coverage(answer)["parts"]]]
    assert " ".join(parts).split() == text.split()
    assert max(len(each.split()) for each in parts) <= CONTEXT
    assert all(each.count("## Section") <= 1 for each in parts)
    assert parts[0].startswith("# Book\n\n## Section 0\n"), "a title alone is no section"
    assert sum(each.startswith("## Section") for each in parts) == 19
    assert coverage(answer)["strategy"] == "map_reduce"


def test_each_part_gets_the_last_sentences_of_the_part_before(client: CountingClient) -> None:
    text = " ".join(f"Line {line} is here." for line in range(200))
    contract = {"text": text, "strategy": "map_reduce", "overlap_sentences": 2}
    answer = Run(client, contract).answer()
    parts = [each.text or "" for each in client.generated[: coverage(answer)["parts"]]]
    assert max(len(each.split()) for each in parts) <= CONTEXT
    for one, other in pairwise(parts):
        last = one.replace("\n\n", " ").split(". ")[-2:]
        assert other.split("\n\n")[:2] == [f"{each.rstrip('.')}." for each in last]
    assert coverage(answer)["left_out_characters"] == 0


def test_headings_without_room_are_left_out_and_no_part_is_over_its_limit(
    client: CountingClient,
) -> None:
    text = f"# {'word ' * 39}\n\n" + "It is here. " * 200
    answer = Run(client, {"text": text, "strategy": "map_reduce", "heading_path": True}).answer()
    parts = [each.text or "" for each in client.generated[: coverage(answer)["parts"]]]
    assert max(len(each.split()) for each in parts) <= CONTEXT
    assert "context_characters" not in coverage(answer)
    assert " ".join(parts).split() == text.split()


def test_refine_reads_each_part_with_the_summary_so_far(client: CountingClient) -> None:
    run = Run(client, {"text": REPORT, "strategy": "refine"})
    answer = run.answer()
    assert coverage(answer)["strategy"] == "refine"
    assert coverage(answer)["rounds"] == coverage(answer)["parts"] == len(client.generated)
    outputs = [Output.from_json(run.kept[at]["output"]) for at in sorted(run.kept)]
    for request, before in zip(client.generated[1:], outputs, strict=False):
        assert request.text is not None
        assert request.text.startswith(before.choices[0].text.strip())


def test_truncate_reads_the_beginning_and_says_what_it_left_out(client: CountingClient) -> None:
    answer = Run(client, {"text": REPORT, "strategy": "truncate"}).answer()
    (request,) = client.generated
    assert request.text is not None
    assert REPORT.startswith(request.text)
    assert CONTEXT // 2 < len(request.text.split()) <= CONTEXT
    [[start, end]] = coverage(answer)["left_out"]
    assert REPORT[:start].strip() == request.text
    assert end == len(REPORT)
    assert answer.left_out_characters == end - start


def test_the_strategy_fail_refuses_a_too_long_text(client: CountingClient) -> None:
    outcome = Run(client, {"text": REPORT, "strategy": "fail"}).start().wait()
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "prompt_too_long")
    assert len(client.asked) == 1


def test_a_part_that_fails_fails_the_document_and_its_others_are_not_waited_for(
    client: CountingClient,
) -> None:
    outcome = Run(client, {"text": REPORT + " unspeakable"}).start().wait()
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "generation_failed")


@pytest.mark.parametrize(("is_interactive", "most"), [(False, 8), (True, 1)])
def test_only_so_many_requests_of_a_document_are_at_the_engine_at_once(
    client: CountingClient, is_interactive: bool, most: int
) -> None:
    Run(client, {"text": "word " * 20_000}, is_interactive=is_interactive).answer()
    assert len(client.generated) > 300
    assert client.most_held <= most


@pytest.mark.parametrize("strategy", ["map_reduce", "refine"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_document_taken_up_again_repeats_no_finished_part(
    client: CountingClient, strategy: str, share: float
) -> None:
    contract = {"text": REPORT, "strategy": strategy}
    whole = Run(client, contract)
    answer = whole.answer()
    num_requests = len(client.generated)

    client.asked = []
    first = Run(client, contract, stop_after=max(int(num_requests * share), 1))
    assert first.start().wait().state is JobState.QUEUED
    kept = dict(first.kept)

    client.asked = []
    second = Run(client, contract, segments=kept)
    assert second.answer() == answer
    assert len(client.generated) == num_requests - len(kept)
    assert second.outcome is not None
    assert second.outcome.has_segments


def test_parts_kept_for_another_request_are_not_used(client: CountingClient) -> None:
    first = Run(client, {"text": REPORT})
    first.answer()
    num_requests = len(client.generated)
    client.asked = []
    other = Run(client, {"text": REPORT, "num_beams": 2}, segments=first.kept)
    other.answer()
    assert len(client.generated) >= num_requests - 1


@pytest.mark.parametrize(
    "limits", [{"max_words": 7}, {"ratio": 0.02}, {"max_words": 30, "min_words": 25}]
)
def test_lengths_in_words_are_kept(client: CountingClient, limits: dict[str, Any]) -> None:
    answer = Run(client, {"text": REPORT, **limits}).answer()
    most = limits.get("max_words") or limits["ratio"] * count_words(REPORT) + 1
    assert 0 < count_words(answer.output) <= most
    if "min_words" in limits:
        assert len(answer.output.split()) >= 10


@pytest.mark.parametrize(
    ("text", "max_words", "kept"),
    [
        ("One two. Three four five.", 3, "One two."),
        ("One two. Three four.", 4, "One two. Three four."),
        ("One two three", 2, "One two"),
        ("One two.", 9, "One two."),
        ("今天天气很好。我们去磨坊。", 8, "今天天气很好。"),
        ("It's well-known. Yes.", 2, "It's well-known."),
        ("", 3, ""),
    ],
)
def test_a_summary_ends_with_the_last_whole_sentence_within_its_words(
    text: str, max_words: int, kept: str
) -> None:
    assert first_words(text, max_words) == kept


def test_an_answer_as_long_as_the_context_leaves_no_room_for_parts() -> None:
    spec = EngineSpec(alias="small", checkpoint="fake", engine="fake", max_input_tokens=5)
    client = EngineClient(spec)
    client.start()
    try:
        outcome = Run(client, {"text": REPORT}).start().wait()
    finally:
        client.stop()
    assert (outcome.state, outcome.error_code) == (JobState.FAILED, "parts_too_small")


def test_options_are_in_the_prompt_of_every_part(client: CountingClient) -> None:
    """The fake engine reads their words before the text's, so its parts have less room."""
    options = {"style": "bullet points", "focus": "the mill", "output_language": "fr"}
    answer = Run(client, {"text": REPORT, "strategy": "map_reduce", **options}).answer()
    assert coverage(answer)["left_out_characters"] == 0
    assert all(request.options == options for request in client.asked)
    for request in client.generated:
        assert len((request.text or "").split()) <= CONTEXT - 5
