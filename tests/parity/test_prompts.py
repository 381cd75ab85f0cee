"""Prompts follow from their requests alone, and from what the checkpoint has."""

from __future__ import annotations

import itertools
import json
from functools import cache

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.router import load
from engine.errors import PromptTooLong, RequestError, UnknownLanguage, UnsupportedParameter
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import ChatTurn, Request
from engine.text.prompts import Prompts
from engine.text.token_lengths import PrefixBound
from tests import checkpoints

TEXT = "the keeper of the mill counted three boats at night"
PAIRS = [("en", "fr"), ("fr", "en"), ("de", "fr"), ("en", "de")]


def prompts_of(folder, max_tokens=None, **settings_) -> Prompts:
    spec = EngineSpec(alias="tiny", checkpoint=str(folder), **settings_)
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start_id = getattr(config, "decoder_start_token_id", None)
    return Prompts(spec, config, tokenizer, start_id, max_tokens)


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


def encoded(prompts: Prompts, request: Request) -> object:
    try:
        return prompts.encode(request)
    except RequestError as error:
        return error.code


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


def translation(target: str, source: str = "en") -> Request:
    return Request(
        id=0, task="translate", text=TEXT, source_language=source, target_language=target
    )


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


def chat_of(prompts: Prompts, *messages: ChatTurn) -> str:
    return prompts.write(Request(id=0, task="chat", messages=messages)).text


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
def test_words_that_may_be_the_users_are_not_repeated(folder_of, raised):
    prompts = prompts_of(folder_of("qwen2"))
    prompts.tokenizer.chat_template = raised
    with pytest.raises(UnsupportedParameter) as refused:
        chat_of(prompts, ChatTurn("user", "a secret"))
    assert "secret" not in str(refused.value)
    assert "refuses these roles" in str(refused.value)


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
def test_a_prefix_never_counts_more_tokens_than_the_whole_has(kind, space, used_of, data):
    tokenizer = used_of(kind)[0].tokenizer
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
