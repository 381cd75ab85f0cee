"""A thought is told from the answer by the marks of the checkpoint, token for token."""

import pytest

from engine.backends.fake import FakeBackend
from engine.core.completion import Completion, GeneratedTokens
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import ChatTurn, Choice, Output, Request
from engine.text.reasoning import KNOWN_MARKS, THINK, ThoughtSplitter, own_marks


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


def split(tokenizer: Characters, prompt: str, answer: str) -> tuple[str, int, str] | None:
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
