from engine.backends.fake import FakeBackend
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Output
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from tests.running.engines import Bench

TEXT = "the keeper of the mill counted three boats and seven sacks of grain"


def answer(request: Request | None = None, spec: dict | None = None, **params) -> Output:
    made = EngineSpec(alias="demo", checkpoint="fake", engine="fake", **(spec or {}))
    request = request or Request(id=0, task="summarize", text=TEXT, params=SamplingParams(**params))
    (output,) = Bench(FakeBackend(made), made).answers([request]).values()
    return output


def test_an_answer_is_words_of_the_prompt_and_always_the_same():
    first, second = answer(), answer()
    assert first == second
    (choice,) = first.choices
    assert set(choice.text.split()) <= set(TEXT.split())
    assert choice.completion_tokens == len(choice.token_ids) == len(choice.text.split())
    assert choice.finish_reason == "stop"
    assert first.prompt_tokens == 13


def test_the_fake_answer_has_the_requested_length():
    (choice,) = answer(max_new_tokens=40).choices
    assert (choice.completion_tokens, choice.finish_reason) == (40, "length")
    (longer,) = answer(max_new_tokens=50).choices
    assert longer.text.startswith(choice.text)


def test_several_answers_differ_and_a_seed_changes_them():
    sampled = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12}
    first = answer(**sampled, seed=1)
    assert len({each.text for each in first.choices}) == 3
    assert {each.text for each in first.choices}.isdisjoint(
        each.text for each in answer(**sampled, seed=2).choices
    )
    assert first.settings["seed"] == 1


def test_a_stop_text_is_cut_off_the_end():
    whole = answer(max_new_tokens=40).choices[0]
    stop = whole.text.split()[5]
    (choice,) = answer(max_new_tokens=40, stop=(stop,)).choices
    assert choice.text == whole.text[: whole.text.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_stop_text_ends_the_answer_with_the_token_that_completes_it():
    """As in `generate`: special tokens, parts of a word and texts over several words alike."""
    text = "the <|im_end|> of a </s> mill"
    whole = answer(
        Request(id=0, task="generate", text=text, params=SamplingParams(max_new_tokens=40))
    )
    words = whole.choices[0].text.split()
    assert {"<|im_end|>", "</s>"} <= set(words)
    for stop in ("<|im_end|>", "</s>", "m_en", "ill", f"{words[6]} {words[7]}", " "):
        params = SamplingParams(max_new_tokens=40, stop=(stop,))
        (choice,) = answer(Request(id=0, task="generate", text=text, params=params)).choices
        num_tokens = next(n for n in range(1, 41) if stop in " ".join(words[:n]))
        assert choice.token_ids == whole.choices[0].token_ids[:num_tokens]
        assert choice.text == " ".join(words).partition(stop)[0]
        assert choice.finish_reason == "stop"


def test_a_chat_is_the_words_of_its_messages():
    chat = Request(
        id=0, task="chat", messages=(ChatTurn("system", "be brief"), ChatTurn("user", "why tides"))
    )
    output = answer(chat)
    assert output.prompt_tokens == 4
    assert set(output.choices[0].text.split()) <= {"be", "brief", "why", "tides"}


def test_the_fake_engine_refuses_unsupported_parameters():
    assert answer(spec={"max_input_tokens": 12}).failure.code == "prompt_too_long"
    translate = Request(id=0, task="translate", text="a", target_language="fr")
    assert answer(translate, spec={"languages": ("de", "en")}).failure.code == "unknown_language"
    assert answer(translate).failure is None
    assert answer(num_return_sequences=2).failure.code == "unsupported_parameter"


def test_a_failure_can_be_rehearsed():
    assert answer(spec={"fake_fail_on": "seven sacks"}).failure.code == "generation_failed"
    assert answer(spec={"fake_fail_on": "eight sacks"}).failure is None
