"""Content may be a list of parts; what is no text is refused by its name."""

import pytest

from tasks.chat import ChatContract
from tasks.errors import ContractError


def contract(*contents: object, **more: object) -> ChatContract:
    messages = []
    for at, each in enumerate(contents):
        messages.append({"role": "assistant" if at % 2 else "user", "content": each})
    return ChatContract.parse({"messages": messages, **more})


def text(words: str, **more: object) -> dict[str, object]:
    return {"type": "text", "text": words, **more}


def test_parts_of_text_are_one_text() -> None:
    found = contract([text("the mill"), text("turns")], [text("yes")], "and now?")
    assert [each.content for each in found.messages] == ["the mill\nturns", "yes", "and now?"]
    assert found.chat_template_kwargs is None
    assert found.num_characters == len("the mill\nturns") + len("yes") + len("and now?")


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,secret"}}, "an image"),
        ({"type": "image", "url": "https://example.org/secret.png"}, "an image"),
        ({"type": "input_image", "image_url": "secret"}, "an image"),
        ({"image": "secret"}, "an image"),
        ({"type": "input_audio", "input_audio": {"data": "secret"}}, "a sound"),
        ({"type": "video", "path": "secret"}, "a video"),
        ({"type": "file", "file": {"file_id": "secret"}}, "a file"),
    ],
)
def test_a_part_that_is_not_text_is_refused_by_name(part: dict[str, object], name: str) -> None:
    with pytest.raises(ContractError) as refused:
        contract([text("what is this?"), part])
    (problem,) = refused.value.problems
    assert problem.field == "messages.0.content"
    assert problem.fault.startswith(f"holds {name}; models read text alone")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "part",
    [
        "secret", {"type": "text"}, {"type": "text", "text": 7}, {"type": "tool", "text": "x"},
        {"type": "text", "text": "x", "secret": 1}, [], None,
    ],
)  # fmt: skip
def test_a_part_of_another_kind_is_refused(part: object) -> None:
    with pytest.raises(ContractError) as refused:
        contract([part])
    assert [each.field for each in refused.value.problems] == ["messages.0.content"]
    assert "secret" not in str(refused.value)


def test_the_languages_of_a_translators_part_are_switches_of_its_template() -> None:
    """As the card of TranslateGemma writes them."""
    languages = {"source_lang_code": "cs", "target_lang_code": "de-DE"}
    found = contract([text("V nejhorším případě", **languages)])
    assert found.messages[0].content == "V nejhorším případě"
    assert found.chat_template_kwargs == languages
    assert found.work()["chat_template_kwargs"] == languages
    more = contract([text("x", **languages)], chat_template_kwargs={"formal": True})
    assert more.chat_template_kwargs == {**languages, "formal": True}


def test_two_languages_in_one_dialogue_are_refused() -> None:
    with pytest.raises(ContractError, match="more than one target_lang_code"):
        contract([text("x", target_lang_code="fr")], "y", [text("z", target_lang_code="de")])


def test_no_parts_are_no_text() -> None:
    with pytest.raises(ContractError, match="empty one"):
        contract([])
