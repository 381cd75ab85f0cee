"""A thought is told from the answer by the marks of the checkpoint, token for token."""

from typing import Any

import pytest

from engine.backends.fake import FakeBackend
from engine.core.completion import Completion, GeneratedTokens
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice, Output
from engine.protocol.request import ChatTurn, Request
from engine.text.reasoning import ANSWER_MARKS, KNOWN_MARKS, THINK, ThoughtSplitter, own_marks


class Characters:
    """A tokenizer with a token for each character, and one for each of its special tokens."""

    def __init__(self, *special: str, template: str = "", plain: tuple[str, ...] = ()) -> None:
        self.tokens = [
            *special,
            *plain,
            *(chr(each) for each in range(32, 127)),
            "\n",
            "é",
            "◁",
            "▷",
        ]
        self.num_special = len(special)
        self.chat_template = template
        self.response_template: Any = None
        self.all_special_ids = list(range(self.num_special))

    def get_vocab(self) -> dict[str, int]:
        return {token: at for at, token in enumerate(self.tokens)}

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(
            self.tokens[each]
            for each in token_ids
            if not (skip_special_tokens and each < self.num_special)
        )

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            token = max((each for each in self.tokens if text.startswith(each)), key=len)
            ids.append(self.tokens.index(token))
            text = text.removeprefix(token)
        return ids


def split(tokenizer: Characters, prompt: str, answer: str) -> tuple[str | None, int, str] | None:
    ids = tokenizer.encode(answer)
    thought = ThoughtSplitter(tokenizer).thought(tokenizer.encode(prompt), ids)
    if thought is None:
        return None
    rest = tokenizer.decode(ids[thought.num_tokens :], skip_special_tokens=True)
    return thought.text, thought.num_tokens, thought.rest + rest


@pytest.mark.parametrize("marks", KNOWN_MARKS)
@pytest.mark.parametrize("are_tokens", [True, False])
def test_every_known_mark_parts_thought_from_answer(
    marks: tuple[str, str], are_tokens: bool
) -> None:
    opening, closing = marks
    tokenizer = Characters(*(marks if are_tokens else ()), template=f"... {opening} ...")
    num = len(tokenizer.encode(f"{opening}two and two{closing}"))
    assert split(tokenizer, "user: 2+2?", f"{opening}two and two{closing}four") == (
        "two and two",
        num,
        "four",
    )


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("hello", "<think>hm</think>yes", ("hm", "yes")),
        ("hello<think>\n", "hm</think>yes", ("hm", "yes")),
        ("hello", "hm</think>yes", None),
        ("hello", "it says <think>hm</think>", None),
    ],
)
def test_without_a_template_a_thought_is_what_a_mark_opens(
    prompt: str, answer: str, expected: tuple[str, str] | None
) -> None:
    """Of a text that somebody wrote as a template would, for the task `generate`."""
    for template in ("{{ '<think>' }}", ""):
        tokenizer = Characters(template=template)
        ids = tokenizer.encode(answer)
        found = ThoughtSplitter(tokenizer).thought(tokenizer.encode(prompt), ids, False)
        if expected is None or not template:
            assert found is None
        else:
            assert found is not None
            rest = found.rest + tokenizer.decode(ids[found.num_tokens :])
            assert (found.text, rest) == expected


def test_a_thought_that_the_prompt_opens_is_one() -> None:
    tokenizer = Characters(template="{{ '<think>' }}")
    text, num_tokens, rest = split(tokenizer, "hello<think>\n", "hm</think>\n\nyes") or ("", 0, "")
    assert (text, num_tokens, rest.strip()) == ("hm", len("hm</think>"), "yes")


def test_a_model_that_leaves_out_the_opening_mark_has_thought_all_the_same() -> None:
    tokenizer = Characters(template="{{ '<think>' }}")
    assert split(tokenizer, "hello", "hm</think>yes") == ("hm", len("hm</think>"), "yes")


def test_a_thought_that_was_cut_is_no_answer() -> None:
    tokenizer = Characters(template="{{ '<think>' }}")
    answer = "<think>hm and hm"
    assert split(tokenizer, "hello", answer) == ("hm and hm", len(answer), "")


def test_a_prompt_that_closes_the_thought_is_followed_by_an_answer() -> None:
    tokenizer = Characters(template="{{ '<think>' }}")
    assert split(tokenizer, "hello<think>\n\n</think>\n\n", "yes") is None


@pytest.mark.parametrize("template", ["", "{{ '<think>' }}"])
def test_a_mark_within_the_answer_is_the_answers(template: str) -> None:
    tokenizer = Characters(template=template)
    assert split(tokenizer, "hello", "write <think> first, </think> last") is None


def test_a_checkpoint_that_names_no_marks_may_think_all_the_same() -> None:
    tokenizer = Characters()
    assert own_marks(tokenizer) == ()
    assert split(tokenizer, "hello", "<think>hm</think>yes") == (
        "hm",
        len("<think>hm</think>"),
        "yes",
    )
    assert split(tokenizer, "<think>", "hm</think>yes") is None, "the prompt is the user's own"


def test_a_token_that_goes_on_behind_the_mark_gives_the_rest_to_the_answer() -> None:
    tokenizer = Characters(template="{{ '<think>' }}", plain=("k> four",))
    assert split(tokenizer, "", "<think>2</think> four") == (
        "2",
        len(tokenizer.encode("<think>2</think> four")),
        " four",
    )


@pytest.mark.parametrize("marks", KNOWN_MARKS)
@pytest.mark.parametrize("are_tokens", [True, False])
def test_of_a_thought_that_was_cut_no_mark_is_left(
    marks: tuple[str, str], are_tokens: bool
) -> None:
    opening, _ = marks
    tokenizer = Characters(*(marks if are_tokens else ()), template=f"... {opening} ...")
    answer = f"{opening}two and"
    assert split(tokenizer, "2+2?", answer) == ("two and", len(tokenizer.encode(answer)), "")


@pytest.mark.parametrize("marks", [each for each in KNOWN_MARKS if not each[0][0].isalnum()])
def test_an_answer_that_was_cut_within_the_opening_mark_is_a_thought(
    marks: tuple[str, str],
) -> None:
    tokenizer = Characters(template=f"... {marks[0]} ...")
    text, num_tokens, rest = split(tokenizer, "2+2?", marks[0][:-1]) or ("", 0, "no")
    assert (text or "", num_tokens, rest) == ("", len(marks[0]) - 1, "")


def test_an_answer_that_begins_like_a_mark_in_words_is_one() -> None:
    tokenizer = Characters(template="Write your thoughts after 'Here is my thought process:'")
    assert split(tokenizer, "2+2?", "Here is") is None


HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>")
TO_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize("are_tokens", [True, False])
@pytest.mark.parametrize(
    ("answer", "thought", "text"),
    [
        (f"<|channel|>analysis<|message|>hm{TO_FINAL}four<|return|>", "hm", "four"),
        # Nothing was thought.
        ("<|channel|>final<|message|>four<|return|>", None, "four"),
        # The header names a format.
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final <|constrain|>json<|message|>4<|return|>",
            "hm",
            "4",
        ),
        ("<|channel|>final <|constrain|>json<|message|>4<|return|>", None, "4"),
        # Two thoughts, and words on what it is about to do.
        (
            "<|channel|>analysis<|message|>one<|end|><|start|>assistant"
            "<|channel|>analysis<|message|>two<|end|><|start|>assistant"
            f"<|channel|>commentary<|message|>now{TO_FINAL}four<|return|>",
            "one\ntwo\nnow",
            "four",
        ),
        # Cut
        ("<|channel|>analysis<|message|>two and", "two and", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assi", "hm", ""),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>fin", "hm", ""),
        ("<|channel|>final", None, ""),
    ],
)
def test_channels_are_parsed_in_every_form(
    answer: str, thought: str | None, text: str, are_tokens: bool
) -> None:
    if not are_tokens:
        answer = answer.removesuffix("<|return|>")
    tokenizer = Characters(
        *(HARMONY if are_tokens else ()), template="'<|channel|>analysis<|message|>'"
    )
    parts = split(tokenizer, "<|start|>assistant", answer)
    assert parts is not None
    assert (parts[0], parts[2]) == (thought, text)


def test_a_thought_that_the_prompt_opens_in_a_channel_is_one() -> None:
    tokenizer = Characters(*HARMONY, template="'<|channel|>analysis<|message|>'")
    prompt = "<|start|>assistant<|channel|>analysis<|message|>"
    parts = split(tokenizer, prompt, f"hm{TO_FINAL}four<|return|>")
    assert parts is not None
    assert (parts[0], parts[2]) == ("hm", "four")


def test_a_mark_in_an_answer_whose_thought_is_over_is_the_answers() -> None:
    tokenizer = Characters(template="{{ '<think>' }}")
    closed = "hello<think>\n\n</think>\n\n"
    assert split(tokenizer, closed, "what ends one is </think>, I think") is None
    assert split(tokenizer, closed, "</think>yes") == ("", len("</think>"), "yes"), "said again"


def test_a_mark_that_the_template_has_not_is_one_beside_its_own() -> None:
    tokenizer = Characters(template="{{ '[THINK]' }}")
    assert split(tokenizer, "hello", "<think>hm</think>yes") == ("hm", 17, "yes")


def test_the_marks_of_a_tokenizers_response_template_are_its_own() -> None:
    tokenizer = Characters()
    field = {"open": ["<pondering>\n", "<musing>"], "close": "<done>", "content": "text"}
    tokenizer.response_template = {"fields": {"thinking": field, "content": {"content": "text"}}}
    for opening in ("<pondering>\n", "<musing>"):
        answer = f"{opening}hm<done>yes"
        assert split(tokenizer, "hello", answer) == ("hm", len(answer) - 3, "yes")
    assert split(tokenizer, "hello<musing>", "hm<done>yes") == ("hm", 8, "yes")
    for other in ({"fields": {"thinking": {"open_pattern": "x"}}}, {"fields": []}, "none"):
        tokenizer.response_template = other
        assert own_marks(tokenizer) == ()


def test_a_special_token_within_a_thought_is_no_part_of_its_text() -> None:
    tokenizer = Characters("<seed:budget>", template="{{ '<think>' }}")
    answer = "<think>a<seed:budget>b</think>yes"
    parts = split(tokenizer, "hello", answer)
    assert parts is not None
    assert (parts[0], parts[2]) == ("ab", "yes")


@pytest.mark.parametrize("marks", ANSWER_MARKS)
def test_marks_around_an_answer_are_taken_off_where_the_template_has_them(
    marks: tuple[str, str],
) -> None:
    opening, closing = marks
    splitter = ThoughtSplitter(Characters(template=f"<think></think>{opening}{closing}"))
    assert splitter.unwrapped(f"\n{opening}yes{closing}\n") == "yes"
    assert splitter.unwrapped(f"{opening}yes, and") == "yes, and"
    assert splitter.unwrapped(f"so {opening}yes{closing}") == f"so {opening}yes{closing}"
    other = ThoughtSplitter(Characters(template="<think></think>"))
    assert other.unwrapped(f"{opening}yes{closing}") == f"{opening}yes{closing}"


def test_a_choice_crosses_the_pipe_with_its_thought_and_without() -> None:
    choices = (Choice("yes", "stop", 9, (), "hm", 7), Choice("no", "length", 3))
    output = Output(request_id=1, choices=choices)
    assert Output.from_json(output.to_json()).choices == choices
    before = {**output.to_json(), "choices": [["no", "length", 3]]}
    assert Output.from_json(before).choices == choices[1:], "as segments were kept before"


def test_the_fake_engine_thinks_in_words() -> None:
    engine = FakeBackend(EngineSpec(alias="fake", checkpoint="fake", engine="fake"))
    words = (THINK[0], "well", THINK[1], "yes")
    sequence = engine.encode(
        Request(id=1, task="chat", messages=(ChatTurn("user", " ".join(words)),))
    )
    output = engine.decode(Completion(sequence, (GeneratedTokens((0, 1, 1, 2, 3), "stop"),)))
    (choice,) = output.choices
    assert (choice.text, choice.reasoning, choice.reasoning_tokens) == ("yes", "well well", 4)
    assert choice.completion_tokens == 5
