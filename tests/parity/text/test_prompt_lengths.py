"""How many tokens a text has, and how little of a huge one is read to know that it has too many."""

from __future__ import annotations

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.loader import load
from engine.errors import PromptTooLong, RequestError
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import ChatTurn, Request
from engine.text.token_lengths import PrefixBound
from tests.parity.trials.written_prompts import prompts_of


def test_dialogues_are_measured_as_they_are_read(folder_of):
    spec = EngineSpec(alias="tiny", checkpoint=str(folder_of("qwen2")), device="cpu")
    engine = load(spec)
    dialogues = tuple(
        tuple(ChatTurn("user" if at % 2 == 0 else "assistant", "mill " * at) for at in range(num))
        for num in (1, 3, 5)
    )[1:]
    request = Request(id=1, task="chat", measured_messages=dialogues)
    assert Request.from_json(request.to_json()) == request
    measured = engine.measure(request)
    read = [
        engine.encode(Request(id=2, task="chat", messages=each)).prompt_ids for each in dialogues
    ]
    assert measured.num_tokens == tuple(map(len, read))


COUNTED = ["t5", "gpt2", "llama", "qwen2", "mbart", "nllb", "m2m100", "marian"]


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("space", [" ", ""])
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_prefix_never_counts_more_tokens_than_the_whole_has(kind, space, folder_of, data):
    tokenizer = prompts_of(folder_of(kind)).tokenizer
    words = st.sampled_from(
        [
            "mill",
            "the",
            "Hafen",
            "天气",
            "  ",
            "\n",
            "é",
            "\u200b",
            "e\u0301",
            "\u1234",
            "aaaa",
            "--",
        ]
    )
    text = space.join(data.draw(st.lists(words, min_size=9, max_size=30))) * 300
    whole = len(tokenizer(text)["input_ids"])
    bound = PrefixBound(max_tokens=whole)
    bound.max_uncounted = 0

    def count_tokens(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False)["input_ids"])

    least = bound.least_tokens(text, count_tokens)
    assert 0 <= least <= whole
    # It is no idle bound: most of an ordinary text is counted.
    if whole * 6 > len(text):
        assert least > whole / 2


HUGE = {
    "words": "the mill " * 430_000,
    "one word": "harbourmill" * 354_000,
    "one letter": "a" * 3_900_000,
    "Chinese": "今天天气很好磨坊港口河流报告" * 278_000,
    "unknown characters": "\u1234\u1235" * 1_950_000,
    "spaces": "mill" + " " * 3_900_000 + "mill",
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama", "nllb", "m2m100"])
def test_only_the_beginning_of_a_huge_text_is_tokenized(kind, text, folder_of):
    prompts = prompts_of(folder_of(kind), max_tokens=255)
    lengths = []
    tokenizer = prompts.tokenizer

    class Watched:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **how):
            lengths.append(len(text))
            return tokenizer(text, **how)

    prompts.tokenizer = Watched()
    with pytest.raises(
        RequestError, match=r"at least \d+ tokens.* this model takes 255"
    ) as refused:
        prompts.encode(Request(id=0, task="generate", text=text))
    assert refused.value.code == "prompt_too_long"
    assert max(lengths) <= 8192
    assert sum(lengths) <= 262_144 + 8192


@pytest.mark.parametrize("task", ["summarize", "translate", "chat"])
def test_a_huge_text_of_any_task_is_refused_by_its_beginning(task, folder_of):
    prompts = prompts_of(folder_of("qwen2"), max_tokens=255)
    text = "今天天气很好" * 600_000
    fields = {
        "chat": {"messages": (ChatTurn("user", text),)},
        "summarize": {"text": text},
        "translate": {"text": text, "source_language": "zh", "target_language": "en"},
    }
    with pytest.raises(PromptTooLong, match=r"at least \d+ tokens; this model takes 255"):
        prompts.encode(Request(id=0, task=task, **fields[task]))


def test_a_long_text_within_the_limit_is_tokenized_whole(folder_of):
    prompts = prompts_of(folder_of("t5"), max_tokens=200_000)
    text = "the mill " * 30_000
    fresh = transformers.AutoTokenizer.from_pretrained(folder_of("t5"))
    pauses = []
    prompt = prompts.encode(Request(id=0, task="generate", text=text), lambda: pauses.append(None))
    assert prompt.token_ids == tuple(fresh(text)["input_ids"])
    assert len(pauses) > 30


def test_another_language_between_the_slices_changes_no_prompt(folder_of):
    prompts, fresh = (prompts_of(folder_of("nllb"), max_tokens=100_000) for _ in range(2))

    def translated(text: str, source: str) -> Request:
        languages = {"source_language": source, "target_language": "fr"}
        return Request(id=0, task="translate", text=text, **languages)

    long, other = translated("the mill " * 9000, "en"), translated("Hafen", "de")
    found = []
    prompt = prompts.encode(long, lambda: found.append(prompts.encode(other)))
    assert prompt == fresh.encode(long)
    assert set(found) == {fresh.encode(other)}
