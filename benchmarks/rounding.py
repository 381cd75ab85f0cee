"""Compare the answers of the demo's trained models with rounded weights and in float32.

    python -m benchmarks.rounding [--inputs 200]

The models are small, so all their linear layers are rounded here, not only those that become
faster. An answer agrees if all of its tokens are the same; a token agrees if it is the same at the
same position.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from random import Random

from engine.backends.router import RouterBackend
from engine.checkpoint.loader import Checkpoint
from engine.checkpoint.weights import layout as weight_layout
from engine.core.scheduler import Scheduler, StepLimits
from engine.cpu import linear
from engine.cpu.quantized_linear import HalfLinear, Int8Linear, has_bfloat16_products
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from examples.world.questions import make_question
from examples.world.reports import make_report
from examples.world.sentences import make_sentence
from examples.world.split import held_out

SEED = 900
Answers = list[tuple[int, ...]]


def summaries(num: int) -> list[Request]:
    return requests(num, make_report, lambda it: {"task": "summarize", "text": it.text})


def translations(num: int) -> list[Request]:
    return requests(
        num,
        make_sentence,
        lambda it: {
            "task": "translate",
            "text": it.english,
            "source_language": "en",
            "target_language": "fr",
        },
    )


def answers_to_questions(num: int) -> list[Request]:
    return requests(
        num,
        make_question,
        lambda it: {
            "task": "chat",
            "messages": tuple(ChatTurn(each["role"], each["content"]) for each in it.messages),
        },
    )


def requests(num: int, make: Callable[[Random], object], say: Callable) -> list[Request]:
    texts = held_out(make, SEED)
    params = SamplingParams(max_new_tokens=60, do_sample=False)
    return [Request(id=id_, params=params, **say(next(texts))) for id_ in range(num)]


MODELS = {
    "summarizer": summaries,
    "translator": translations,
    "storyteller": answers_to_questions,
}


def answered(name: str, quantization: str, asked: list[Request]) -> Answers:
    spec = EngineSpec(
        alias=name, checkpoint=f"examples/models/{name}", device="cpu", quantization=quantization
    )
    checkpoint = Checkpoint.load(spec)
    engine = RouterBackend(spec, checkpoint)
    if quantization != "none":
        rounded = sum(
            isinstance(each, Int8Linear | HalfLinear) for each in checkpoint.model.modules()
        )
        assert rounded > 5, f"only {rounded} modules are rounded"
    scheduler = Scheduler(StepLimits.of(engine.sized.spec))
    scheduler.add(engine.encode(each) for each in asked)
    answers: dict[int, tuple[int, ...]] = {}
    while (plan := scheduler.next_step()) is not None:
        for done in scheduler.apply(plan, engine.run(plan)):
            answers[done.sequence.id] = done.answers[0].token_ids
    return [answers[each.id] for each in asked]


def agreement(one: Answers, other: Answers) -> tuple[float, float]:
    """Return the shares of equal answers and of equal tokens."""
    answers = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    same = sum(a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=False))
    return answers, same / sum(max(len(x), len(y)) for x, y in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=200)
    num = parser.parse_args().inputs
    whole = linear.pack
    weight_layout.pack = lambda model, make: whole(model, make, min_weights=0)
    print("| model | weights | same answers | same tokens |\n|---|---|---|---|")
    for name, make in MODELS.items():
        asked = make(num)
        exact = answered(name, "none", asked)
        for quantization in ("bfloat16", "int8") if has_bfloat16_products() else ("int8",):
            answers, tokens = agreement(exact, answered(name, quantization, asked))
            print(f"| {name} | {quantization} | {answers:.1%} | {tokens:.1%} |", flush=True)


if __name__ == "__main__":
    main()
