"""What a chat template gets, refuses, and says."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UnknownLanguage, UnsupportedParameter
from engine.protocol.request import ChatTurn, Request
from engine.text.prompts import Prompts
from tests.parity.trials.written_prompts import (
    chat_of,
    prompts_of,
    translation_of,
)


def test_switches_reach_the_template(folder_of):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = (
        "{% if enable_thinking is defined and not enable_thinking %}no{% else %}yes{% endif %}"
        "{{ messages[0]['content'] }}{% if strict %}{{ raise_exception(strict) }}{% endif %}"
    )

    def chat(**switches):
        request = Request(
            id=0, task="chat", messages=(ChatTurn("user", "mill"),), chat_template_kwargs=switches
        )
        return prompts.tokenizer.decode(prompts.encode(request).token_ids)

    assert (chat(), chat(enable_thinking=False), chat()) == ("yesmill", "nomill", "yesmill")
    with pytest.raises(UnsupportedParameter) as refused:
        chat(strict="a secret")
    assert "secret" not in str(refused.value)


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate: user, assistant, \\'and so on\\'') }}"
    "{% endif %}{{ m['content'] }}{% endfor %}"
)


def test_a_templates_own_words_of_refusal_reach_the_user(folder_of):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = ALTERNATING
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(prompts, ChatTurn("user", "mill"), ChatTurn("user", "mill"))
    assert str(refused.value) == (
        "messages: the chat template of the model says: "
        "Conversation roles must alternate: user, assistant, 'and so on'"
    )


@pytest.mark.parametrize(
    "raised",
    [
        "{{ raise_exception('no: ' + messages[0]['content']) }}",
        "{{ raise_exception(messages[0]['content']) }}",
        "{{ 1 / (messages[0]['content'] | length - 8) }}",
        "{{ messages[0]['content'].secret.secret }}",
        "{{ raise_exception('') }}",
    ],
)
def test_an_error_does_not_repeat_words_that_may_be_the_users(folder_of, raised):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = raised
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(prompts, ChatTurn("user", "a secret"))
    assert "secret" not in str(refused.value)
    assert "refuses these roles" in str(refused.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] }", "an error of syntax in line 1"),
        ("\n{% frobnicate %}{{ messages[0]['content'] }}", "an error of syntax in line 2"),
        ("{{ messages[0]['content'] }}{{ now() }}", "any others (UndefinedError)"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0]['content'] }}", "any others (SecurityError)"),
        ({"rag": "{{ messages }}", "tool_use": "{{ messages }}"}, "any others (ValueError)"),
        ("hello", "leaves out what a user says"),
        ("{% for m in messages %}{{ m.content.words }}{% endfor %}", "leaves out what a user says"),
    ],
)
def test_a_template_that_can_write_no_prompt_is_said_to_be_at_fault(folder_of, template, reason):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = template
    for request in (
        Request(id=0, task="chat", messages=(ChatTurn("user", "a secret"),)),
        Request(id=0, task="summarize", text="a secret"),
        translation_of("en", "fr", text="a secret"),
    ):
        with pytest.raises(UnsupportedParameter) as refused:
            prompts.write(request)
        assert reason in str(refused.value)
        assert "secret" not in str(refused.value)


PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def test_a_template_that_wants_content_as_a_list_gets_it_so(folder_of):
    prompts = prompts_of(folder_of("qwen2"))
    dialogue = (ChatTurn("system", "be brief"), ChatTurn("user", "mill"))
    prompts.tokenizer.chat_template = PARTS
    assert chat_of(prompts, *dialogue) == "[system]be brief[user]mill"
    either = PARTS.replace(
        "{% for part",
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part",
    ).replace("{% endfor %}{% endfor %}", "{% endfor %}{% endif %}{% endfor %}")
    other = prompts_of(folder_of("qwen2"))
    other.tokenizer.chat_template = either
    assert chat_of(other, *dialogue) == "[system]be brief[user]mill"
    assert not other.chat_template.content_is_list, "a text is what it always was"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("'Only user and assistant roles are supported, got ' + m + '.'",
         "Only user and assistant roles are supported, got …"),
        ("'No more than ' ~ m ~ ' turns are possible'", "No more than … turns are possible"),
        ("'Unsupported: ' ~ m", "Unsupported: …"),
        ("'The user %s is not taken here' % m", "The user … is not taken here"),
        ("'The user {name} is not taken'.format(name=m)", "The user … is not taken"),
        ("'No: ' ~ m", None),
        ("m ~ ' is not a language of this model'", None),
    ],
)  # fmt: skip
def test_an_error_text_built_by_a_template_shows_only_the_templates_parts(folder_of, raised, words):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = (
        "{% set m = messages[0]['content'] %}{{ raise_exception(" + raised + ") }}"
    )
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(prompts, ChatTurn("user", "a secret"))
    assert "secret" not in str(refused.value)
    assert words is None or str(refused.value).endswith(f"says: {words}")
    assert words is not None or "refuses these roles" in str(refused.value)


# A translator's template, which writes the instruction and reads languages from the content

TRANSLATING = (Path(__file__).parent / "translating_template.jinja").read_text()

EXPECTED = (
    "<start_of_turn>user\nYou are a professional {source} to {target} translator.\n\n\n"
    "the mill<end_of_turn>\n<start_of_turn>model\n"
)


def translator(folder_of) -> Prompts:
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = TRANSLATING
    return prompts


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("en", "fr", ("English (en)", "French (fr)")),
        ("eng_Latn", "fra_Latn", ("English (en)", "French (fr)")),
        ("cs", "de-DE", ("Czech (cs)", "German (de-DE)")),
        ("en", "zh-TW", ("English (en)", "Chinese (zh-Hant)")),
    ],
)
def test_a_translation_goes_through_a_template_that_takes_languages(
    folder_of, source, target, expected
):
    prompts = translator(folder_of)
    request = translation_of(source, target)
    written = prompts.write(request)
    bos = prompts.tokenizer.bos_token or ""
    assert written.text == bos + EXPECTED.format(source=expected[0], target=expected[1])
    # What the tokenizer makes of the very messages of the model's card.
    of_card = [{"type": "text", "text": "the mill"}]
    of_card[0] |= dict(
        zip(("source_lang_code", "target_lang_code"), codes_in(expected), strict=True)
    )
    ids = prompts.tokenizer.apply_chat_template(
        [{"role": "user", "content": of_card}], add_generation_prompt=True
    )["input_ids"]
    assert list(prompts.encode(request).token_ids) == ids
    assert prompts.version_of(request) is None, "the words are the template's"


def codes_in(names: tuple[str, str]) -> tuple[str, ...]:
    return tuple(each.partition("(")[2].rstrip(")") for each in names)


@pytest.mark.parametrize(("source", "target"), [("en", "ja"), ("ja", "en"), ("en", "xx")])
def test_a_language_that_a_template_has_not_is_refused_by_name(folder_of, source, target):
    with pytest.raises(UnknownLanguage) as refused:
        translator(folder_of).write(translation_of(source, target))
    assert "zh-Hant" in str(refused.value)


def test_without_a_table_of_languages_codes_are_given_as_standards_have_them(folder_of):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content[0].source_lang_code }} to "
        "{{ m.content[0].target_lang_code }}: {{ m.content[0].text }}{% endfor %}"
    )
    assert prompts.write(translation_of("fra_Latn", "pt_BR")).text == "fra-Latn to pt-BR: the mill"
    with pytest.raises(UnknownLanguage):
        prompts.write(translation_of("no language", "fr"))


def test_a_chat_with_a_translator_names_the_languages_among_the_switches(folder_of):
    prompts = translator(folder_of)
    switches = {"source_lang_code": "en", "target_lang_code": "fr"}
    turns = (
        ChatTurn("user", "boat"),
        ChatTurn("assistant", "bateau"),
        ChatTurn("user", "the mill"),
    )
    request = Request(id=0, task="chat", messages=turns, chat_template_kwargs=switches)
    text = prompts.write(request).text
    assert "model\nbateau<end_of_turn>" in text
    assert text.endswith(EXPECTED.format(source="English (en)", target="French (fr)"))
    with pytest.raises(UnsupportedParameter) as refused:
        prompts.write(Request(id=0, task="chat", messages=turns))
    assert str(refused.value) == (
        "messages: the chat template of the model says: "
        "User content must provide `source_lang_code` and `target_lang_code`."
    )


def test_a_summary_by_a_translator_fails_in_its_templates_words(folder_of):
    with pytest.raises(UnsupportedParameter) as refused:
        translator(folder_of).write(Request(id=0, task="summarize", text="the mill"))
    assert str(refused.value).startswith("text: the chat template of the model says: User content")


SWITCHED = "{% if think is defined and not think %}/no {% endif %}{{ messages[0].content }}"


@pytest.mark.parametrize("task", ["summarize", "translate", "chat"])
def test_switches_reach_the_template_of_every_task_that_has_one(folder_of, task):
    def written(spec_own: dict, own: dict) -> str:
        prompts = prompts_of(folder_of("qwen2"), chat_template_kwargs=spec_own)
        prompts.tokenizer.chat_template = SWITCHED
        content = {"messages": (ChatTurn("user", "mill"),)} if task == "chat" else {"text": "mill"}
        languages = {"source_language": "en", "target_language": "fr"}
        request = Request(id=0, task=task, chat_template_kwargs=own, **content, **languages)
        return prompts.write(request).text

    plain = written({}, {})
    assert "/no" not in plain
    assert written({}, {"think": False}) == f"/no {plain}"
    assert written({"think": False}, {}) == f"/no {plain}"
    assert written({"think": False}, {"think": True}) == plain


@pytest.mark.parametrize(("kind", "task"), [("t5", "summarize"), ("qwen2", "generate")])
def test_switches_are_refused_where_there_is_no_template(folder_of, kind, task):
    request = Request(id=0, task=task, text="mill", chat_template_kwargs={"think": False})
    with pytest.raises(UnsupportedParameter, match="chat_template_kwargs: no chat template"):
        prompts_of(folder_of(kind)).write(request)
