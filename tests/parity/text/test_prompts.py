"""Prompts follow from their requests alone, and from what the checkpoint has."""

from __future__ import annotations

import itertools
import json
from functools import cache

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import UnknownLanguage, UnsupportedParameter
from engine.protocol.request import ChatTurn, Request
from tests import checkpoints
from tests.parity.trials.written_prompts import (
    TEXT,
    encoded,
    prompts_of,
    translation,
    translation_of,
)

PAIRS = [("en", "fr"), ("fr", "en"), ("de", "fr"), ("en", "de")]


def requests() -> list[Request]:
    texts = [TEXT, "die Mühle am Hafen", "x"]
    plain = [
        {"task": task, "text": text}
        for task, text in itertools.product(("generate", "summarize"), texts)
    ]
    pairs = [
        {"task": "translate", "text": text, "source_language": source, "target_language": target}
        for text, (source, target) in itertools.product(texts, PAIRS)
    ]
    chats = [
        {"task": "chat", "messages": (ChatTurn("user", text),), "chat_template_kwargs": switches}
        for text, switches in itertools.product(texts, ({}, {"enable_thinking": False}))
    ]
    return [Request(id=at, **each) for at, each in enumerate([*plain, *pairs, *chats])]


@pytest.fixture(scope="module")
def used_of(folder_of):
    """Prompts that every example of a kind goes on with, and what fresh ones say."""

    @cache
    def make(kind: str):
        fresh = {each.id: encoded(prompts_of(folder_of(kind)), each) for each in requests()}
        return prompts_of(folder_of(kind)), fresh

    return make


@pytest.mark.parametrize("kind", checkpoints.KINDS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.sampled_from(requests()), min_size=2, max_size=12))
def test_a_prompt_does_not_depend_on_those_before_it(kind, used_of, order):
    used, fresh = used_of(kind)
    for request in order:
        assert encoded(used, request) == fresh[request.id]


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_a_plain_text_is_what_a_tokenizer_loaded_afresh_makes_of_it(kind, folder_of):
    prompts = prompts_of(folder_of(kind))
    for source, target in PAIRS:
        languages = {"source_language": source, "target_language": target}
        encoded(prompts, Request(id=0, task="translate", text=TEXT, **languages))
        plain = prompts.encode(Request(id=1, task="generate", text=TEXT))
        fresh = transformers.AutoTokenizer.from_pretrained(folder_of(kind))
        assert plain.token_ids == tuple(fresh(TEXT)["input_ids"])
        assert plain.forced_bos_token_id is None


@pytest.fixture
def t5_with(folder_of, tmp_path):
    """A copy of a tiny checkpoint with more in its configuration or vocabulary."""

    def make(kind="t5", tokens=(), **config):
        folder = tmp_path / kind
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of(kind))
        tokenizer.add_tokens(list(tokens))
        tokenizer.save_pretrained(folder)
        known = json.loads((folder_of(kind) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**known, **config}))
        return prompts_of(folder)

    return make


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_tokens_that_name_a_target_make_the_prompt_whatever_the_architecture(t5_with, kind):
    prompts = t5_with(kind, tokens=["<2de>", "<2fr>", "<2zh_Hant>"])
    tokenizer = prompts.tokenizer
    for language, token in (("de", "<2de>"), ("fra", "<2fr>"), ("zh-TW", "<2zh_Hant>")):
        ids = prompts.encode(translation(language)).token_ids
        assert ids == tuple(tokenizer(f"{token} {TEXT}")["input_ids"])
        assert ids[0] == tokenizer.convert_tokens_to_ids(token)
    for language in ("ja", "zh-Hans"):
        with pytest.raises(UnknownLanguage):
            prompts.encode(translation(language))


LISTED = {
    "summarization": {"prefix": "sum {up}: "},
    "translation_en_to_de": {"prefix": "to German: ", "max_length": 9},
}


@pytest.mark.parametrize("kind", ["t5", "mt5", "bart"])
def test_listed_prefixes_are_used_whatever_the_architecture(t5_with, kind):
    prompts = t5_with(kind, task_specific_params=LISTED)
    tokens = prompts.tokenizer
    summary = prompts.encode(Request(id=0, task="summarize", text=TEXT))
    assert summary.token_ids == tuple(tokens(f"sum {{up}}: {TEXT}")["input_ids"])
    for source, target in (("en", "de"), ("eng", "de-DE")):
        request = translation(target, source)
        ids = prompts.encode(request).token_ids
        assert ids == tuple(tokens(f"to German: {TEXT}")["input_ids"])
        assert prompts.params_of(request)["max_length"] == 9
    for source, target in (("en", "ja"), ("de", "en")):
        with pytest.raises(UnknownLanguage):
            prompts.encode(translation(target, source))


def test_a_prompt_may_name_languages_by_their_codes(folder_of):
    """Seed-X has no chat template, and reads the target as a mark in the end."""
    template = (
        "Translate {source_language} ({source_code}) into {target_language}:\n"
        "{text} <{target_code}>"
    )
    prompts = prompts_of(folder_of("mistral"), prompt={"translate": template})
    prompts.tokenizer.chat_template = None
    for source, target in (("en", "zh"), ("eng_Latn", "zho_Hans"), ("en-GB", "zh-Hans")):
        text = prompts.write(translation_of(source, target)).text
        assert text.startswith("Translate ")
        assert " (en) into " in text
        assert text.endswith(":\nthe mill <zh>")
    with pytest.raises(UnknownLanguage):
        prompts.write(translation_of("en", "no language"))


OPTIONS = {"style": "bullet points", "focus": "what it {costs}", "output_language": "fr"}


def summary(**options: str) -> Request:
    return Request(id=0, task="summarize", text=TEXT, options=options)


def test_the_options_of_a_summary_are_sentences_of_its_instruction(folder_of):
    prompts = prompts_of(folder_of("qwen2"))
    plain, told = prompts.write(summary()).text, prompts.write(summary(**OPTIONS)).text
    assert f"Summarize the following text in a few sentences.\n\n{TEXT}" in plain
    assert (
        "Summarize the following text in a few sentences. "
        "Write the summary in this style: bullet points. "
        "Pay attention above all to: what it {costs}. "
        f"Write the summary in French.\n\n{TEXT}"
    ) in told
    assert prompts.version_of(summary()) == "1"
    request = summary(**OPTIONS)
    assert Request.from_json(request.to_json()) == request


def test_prompt_texts_are_overridden_by_name_and_their_version_says_so(folder_of):
    ours = {"summarize": "Sum up:{options}\n{text}", "summarize_style": "As {style}."}
    prompts = prompts_of(folder_of("qwen2"), prompts=ours)
    written = prompts.write(summary(style="a haiku", output_language="pt-BR")).text
    assert f"Sum up: As a haiku. Write the summary in Portuguese (Brazil).\n{TEXT}" in written
    version = prompts.version_of(summary())
    assert version is not None
    assert version.startswith("1+")
    other = prompts_of(folder_of("qwen2"), prompts={**ours, "summarize_style": "Like {style}."})
    assert other.version_of(summary()) != version


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_that_takes_no_instructions_refuses_each_option_by_name(kind, name, folder_of):
    prompts = prompts_of(folder_of(kind))
    with pytest.raises(UnsupportedParameter, match=f"^{name}: this model takes no instructions"):
        prompts.write(summary(**{name: OPTIONS[name]}))
    assert prompts.version_of(summary()) is None


def test_a_template_without_a_place_for_options_refuses_them(folder_of):
    prompts = prompts_of(folder_of("qwen2"), prompt={"summarize": "TL;DR {text}"})
    with pytest.raises(UnsupportedParameter, match=r"^style: the prompt template of the model"):
        prompts.write(summary(style="a haiku"))
    assert prompts.version_of(summary()) is None
    placed = prompts_of(folder_of("qwen2"), prompt={"summarize": "TL;DR{options} {text}"})
    assert (
        f"TL;DR Write the summary in this style: a haiku. {TEXT}"
        in placed.write(summary(style="a haiku")).text
    )


def test_a_language_that_is_none_is_refused(folder_of):
    with pytest.raises(UnknownLanguage):
        prompts_of(folder_of("qwen2")).write(summary(output_language="xx"))
