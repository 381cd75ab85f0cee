"""Write the jobs of the demo's nightly batch, and three documents.

Each task has a file with one contract per line.

    python examples/make_nightly.py

The texts are held out: the demo models never saw them in training.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from world.questions import make_question, make_small_talk
from world.reports import make_report
from world.sentences import make_sentence
from world.split import held_out
from world.stories import Story, make_story
from world.towns import TOWNS

NIGHTLY = Path(__file__).parent / "nightly"
SEED = 20_000
REPORTS_A_MONTH = 14
NUM_WEEKS = 20
Fields = dict[str, Any]


def summaries(draw: Random) -> Iterator[Fields]:
    for report in held_out(make_report, SEED):
        yield {"text": report.text, "metadata": {"station": report.town}}


def translations(draw: Random) -> Iterator[Fields]:
    for sentence in held_out(make_sentence, SEED):
        languages = {"source_language": "en", "target_language": "fr"}
        yield {"text": sentence.english, **languages, "metadata": _station(draw)}


def beginnings(draw: Random) -> Iterator[Fields]:
    """Yield prompts for stories: a third are decoded greedily, the others sampled with a seed."""
    for number, story in enumerate(held_out(make_story, SEED)):
        sample = {"temperature": 0.8, "seed": number} if number % 3 else {}
        prompt = {"text": _beginning(story, draw), "max_new_tokens": 120}
        yield {**prompt, **sample, "metadata": _station(draw)}


def chats(draw: Random) -> Iterator[Fields]:
    questions, small_talk = held_out(make_question, SEED), held_out(make_small_talk, SEED)
    while True:
        asked = next(small_talk if draw.random() < 0.15 else questions)
        yield {"messages": asked.messages, "max_new_tokens": 120, "metadata": _station(draw)}


FILES: dict[str, tuple[Callable[[Random], Iterator[Fields]], str, int]] = {
    "reports.jsonl": (summaries, "report", 120),
    "sentences.jsonl": (translations, "sentence", 140),
    "stories.jsonl": (beginnings, "story", 60),
    "questions.jsonl": (chats, "question", 100),
}


def yearbook() -> str:
    """Return a report on a year: some twenty parts for a model, and a section for each month."""
    reports = islice(held_out(make_report, SEED + 1), 12 * REPORTS_A_MONTH)
    months = [
        "\n\n".join(
            [f"## Month {month}", *(each.text for each in islice(reports, REPORTS_A_MONTH))]
        )
        for month in range(1, 13)
    ]
    return "\n\n".join(["# The estuary, a year", *months]) + "\n"


def weeks() -> str:
    """Return a report of twenty sections, one for each week, each on one event.

    The strategy `by_section` summarizes each section by itself.
    """
    reports = islice(held_out(make_report, SEED + 2), NUM_WEEKS)
    parts = [f"## Week {week}\n\n{each.text}" for week, each in enumerate(reports, start=1)]
    return "\n\n".join(parts) + "\n"


def letter() -> str:
    """Return a letter of several paragraphs and a list, to be translated with its layout."""
    sentences = [each.english for each in islice(held_out(make_sentence, SEED + 1), 12)]
    paragraphs = [" ".join(sentences[at : at + 3]) for at in (0, 3, 6)]
    items = "\n".join(f"- {sentence}" for sentence in sentences[9:])
    return "\n\n".join([*paragraphs, items]) + "\n"


DOCUMENTS: dict[str, Callable[[], str]] = {
    "yearbook.md": yearbook,
    "weeks.md": weeks,
    "letter.md": letter,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the jobs of the demo's nightly batch.")
    parser.add_argument(
        "--out", type=Path, default=NIGHTLY, help="folder for the files (default: %(default)s)"
    )
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, noun, num_jobs) in FILES.items():
        jobs = islice(_distinct(make(Random(SEED))), num_jobs)
        with (folder / name).open("w", encoding="utf-8") as file:
            for number, fields in enumerate(jobs, start=1):
                job = {"custom_id": f"{noun}-{number:03}", **fields}
                file.write(json.dumps(job, ensure_ascii=False) + "\n")
        print(f"{folder / name}: {num_jobs} jobs")
    for name, write in DOCUMENTS.items():
        (folder / name).write_text(write(), encoding="utf-8")
        print(f"{folder / name}: a document")


def _distinct(jobs: Iterator[Fields]) -> Iterator[Fields]:
    seen = set()
    for job in jobs:
        asked = str(job.get("text") or job["messages"])
        if asked not in seen:
            seen.add(asked)
            yield job


def _beginning(story: Story, draw: Random) -> str:
    """Return the first sentence of a story, or its first words."""
    words = story.sentences[0].split()
    return " ".join(words[: draw.choice((len(words), len(words), 5, 7))])


def _station(draw: Random) -> dict[str, str]:
    """Return metadata: the place where the text was written down."""
    return {"station": draw.choice(TOWNS).name}


if __name__ == "__main__":
    main()
