"""Measure the quality of the demo models on held-out texts.

python examples/evaluate.py                      all three, in about two minutes
python examples/evaluate.py --only translator --num-texts 1000
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import transformers
from greedy_answers import Answers, generator
from world.questions import Question, make_question
from world.reports import Report, make_digest, make_report
from world.sentences import (
    Sentence,
    in_capitals,
    joined,
    make_sentence,
    make_sentence_on_strangers,
    typed_in_a_hurry,
)
from world.split import held_out
from world.stories import is_well_told, make_story

MODELS = Path(__file__).parent / "models"
SEED = 7


def _pairs(make: Callable[[Random], Sentence], num_together: int) -> Iterator[Sentence]:
    sentences = held_out(make, SEED)
    while True:
        yield joined(list(islice(sentences, num_together)))


def translator_texts() -> dict[str, Iterator[Sentence]]:
    """Return the texts for the translator, by the name of their kind."""
    draw = Random(SEED)
    return {
        "one sentence": held_out(make_sentence, SEED),
        "two sentences": _pairs(make_sentence, 2),
        "three sentences": _pairs(make_sentence, 3),
        "no capital or no full stop": (
            typed_in_a_hurry(each, draw) for each in held_out(make_sentence, SEED)
        ),
        "all in capitals": map(in_capitals, held_out(make_sentence, SEED)),
        "names it has not seen": held_out(make_sentence_on_strangers, SEED),
    }


def evaluate_translator(answers: Answers, num_texts: int) -> dict[str, float]:
    shares = {}
    for name, texts in translator_texts().items():
        sentences = list(islice(texts, num_texts))
        translations = answers([each.english for each in sentences])
        pairs = list(zip(sentences, translations, strict=True))
        shares[name] = share(each.french == french for each, french in pairs)
        if name.startswith("names"):
            shares["names copied"] = share(
                all(one in french for one in each.names) for each, french in pairs
            )
    return shares


def evaluate_summarizer(answers: Answers, num_texts: int) -> dict[str, float]:
    shares = {}
    for name, make in {"reports": make_report, "several together": make_digest}.items():
        reports: list[Report] = list(islice(held_out(make, SEED), num_texts))
        pairs = list(
            zip(reports, answers([f"summarize: {each.text}" for each in reports]), strict=True)
        )
        shares[f"{name}, every key fact"] = share(each.is_told_by(told) for each, told in pairs)
        shares[f"{name}, to the letter"] = share(each.summary == told for each, told in pairs)
    return shares


def evaluate_storyteller(answers: Answers, num_texts: int) -> dict[str, float]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(MODELS / "storyteller")
    questions: list[Question] = list(islice(held_out(make_question, SEED), num_texts))
    prompts = [
        tokenizer.apply_chat_template(
            list(each.messages), add_generation_prompt=True, tokenize=False
        )
        for each in questions
    ]
    begun = [each.sentences[0] for each in islice(held_out(make_story, SEED), num_texts)]
    return {
        "questions": share(
            question.is_answered_by(answer)
            for question, answer in zip(questions, answers(prompts), strict=True)
        ),
        "stories": share(
            is_well_told(beginning + rest)
            for beginning, rest in zip(begun, answers(begun), strict=True)
        ),
    }


def share(right: Iterable[bool]) -> float:
    each = list(right)
    return sum(each) / len(each)


EVALUATORS = {
    "translator": evaluate_translator,
    "summarizer": evaluate_summarizer,
    "storyteller": evaluate_storyteller,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo models on held-out texts.")
    parser.add_argument("--only", choices=EVALUATORS, help="measure this model only")
    parser.add_argument("--num-texts", type=int, default=500, help="of each kind (default: 500)")
    parser.add_argument(
        "--models", type=Path, default=MODELS, help="folder of checkpoints (default: %(default)s)"
    )
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in [arguments.only] if arguments.only else EVALUATORS:
        shares = EVALUATORS[name](generator(arguments.models / name), arguments.num_texts)
        for what, right in shares.items():
            print(f"{name:12} {what:32} {right:6.1%}", flush=True)


if __name__ == "__main__":
    main()
