"""Steps that `transformers` leaves to the user: prompts, languages, chat templates, defaults."""

from __future__ import annotations

import itertools
import json
import shutil
from functools import cache

import pytest

from engine.backends.generate import GenerateBackend
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice
from engine.protocol.request import ChatTurn, Request
from engine.protocol.sampling_params import SamplingParams
from engine.sampling.resolve_params import DEFAULT_MAX_NEW_TOKENS
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.running.engines import Bench

TEXT = "the keeper of the mill counted three boats at night"
SHORT = SamplingParams(max_new_tokens=12, do_sample=False)
ENGLISH_TO_FRENCH = {"source_language": "en", "target_language": "fr"}


@pytest.fixture(scope="module")
def bench_of(bench_of):
    """One engine for all tests that ask for a kind without settings of its own."""
    engine_of = cache(lambda kind: bench_of(kind).loop.engine)

    def make(kind, **settings):
        if settings:
            return bench_of(kind, **settings)
        engine = engine_of(kind)
        return Bench(engine, engine.spec)

    return make


@pytest.fixture(scope="module")
def alone_of(folder_of):
    return cache(lambda kind: Alone(kind, folder_of(kind)))


def answer(bench: Bench, task: str = "generate", text: str | None = TEXT, **fields) -> Choice:
    fields.setdefault("params", SHORT)
    (output,) = bench.answers([Request(id=0, task=task, text=text, **fields)]).values()
    assert output.failure is None, output.failure
    (choice,) = output.choices
    return choice


def failure(bench: Bench, task: str = "generate", text: str | None = TEXT, **fields):
    fields.setdefault("params", SHORT)
    (output,) = bench.answers([Request(id=0, task=task, text=text, **fields)]).values()
    assert output.choices == ()
    return output.failure


def answer_of(alone: Alone, prompt: str, **settings) -> tuple[int, ...]:
    (row,) = alone.generate(prompt, **{"max_new_tokens": 12, "do_sample": False, **settings})
    return tuple(row)


def test_a_job_answers_as_the_articles_example(bench_of, alone_of):
    prompt = "今天天气很好"
    choice = answer(
        bench_of("gpt2"),
        text=prompt,
        params=SamplingParams(max_length=50, num_return_sequences=1),
    )
    alone = alone_of("gpt2")
    (expected,) = alone.generate(prompt, max_length=50, num_return_sequences=1)
    assert choice.token_ids == tuple(expected)
    assert choice.text == alone.text(expected)
    assert len(set(expected)) > 5


def test_a_summarizers_beams_and_lengths_are_its_own(bench_of, alone_of):
    bench, alone = bench_of("bart"), alone_of("bart")
    requests = [
        Request(id=at, task="summarize", text=text)
        for at, text in enumerate(checkpoints.sentences(12, seed=8))
    ]
    outputs = bench.answers(requests)
    for request in requests:
        (expected,) = alone.generate(request.text)
        assert outputs[request.id].choices[0].token_ids == tuple(expected)
        assert 8 <= len(expected) <= 23
    own = {"num_beams": 4, "max_new_tokens": 23, "length_penalty": 2.0, "early_stopping": True}
    assert own.items() <= outputs[0].settings.items()
    assert len(bench.plans[0].sequences) > 1


def test_a_forced_end_at_the_limit_is_not_called_a_stop(bench_of):
    outputs = bench_of("bart").answers(
        Request(id=at, task="summarize", text=text, params=SamplingParams(max_new_tokens=9))
        for at, text in enumerate(checkpoints.sentences(6, seed=8))
    )
    reasons = {each.choices[0].finish_reason for each in outputs.values()}
    assert "length" in reasons
    for output in outputs.values():
        (choice,) = output.choices
        assert (choice.finish_reason == "length") == (choice.completion_tokens == 9)


def test_a_chat_models_own_sampling_is_its_own(bench_of, alone_of):
    choice = answer(bench_of("qwen2"), params=SamplingParams(max_new_tokens=12, seed=3))
    assert choice.token_ids == answer_of(alone_of("qwen2"), TEXT, do_sample=True, seed=3)


def test_the_librarys_default_length_of_twenty_is_not_used(bench_of):
    bench = bench_of("opt")
    requests = [
        Request(id=at, task="generate", text=text)
        for at, text in enumerate(checkpoints.sentences(6))
    ]
    outputs = bench.answers(requests)
    assert outputs[0].settings["max_new_tokens"] < DEFAULT_MAX_NEW_TOKENS  # the rest of 256
    assert max(each.choices[0].completion_tokens for each in outputs.values()) > 20


@pytest.mark.parametrize(
    ("kind", "task", "prompt", "fields"),
    [
        ("t5", "summarize", "summarize: {text}", {}),
        ("t5", "translate", "translate English to French: {text}", ENGLISH_TO_FRENCH),
        ("t5", "generate", "{text}", {}),
        ("mt5", "summarize", "{text}", {}),
        ("pegasus", "summarize", "{text}", {}),
        ("marian", "translate", "{text}", {}),
        ("marian", "translate", "{text}", ENGLISH_TO_FRENCH),
        ("marian_multi", "translate", ">>deu<< {text}", {"target_language": "de"}),
        ("gpt2", "summarize", "{text}\n\nTL;DR:", {}),
        (
            "gpt2",
            "translate",
            "Translate from English to French.\n\nEnglish: {text}\nFrench:",
            ENGLISH_TO_FRENCH,
        ),
    ],
)
def test_each_family_gets_the_prompt_format_of_its_training(
    bench_of, alone_of, kind, task, prompt, fields
):
    choice = answer(bench_of(kind), task, **fields)
    assert choice.token_ids == answer_of(alone_of(kind), prompt.format(text=TEXT))


@pytest.mark.parametrize(
    ("task", "fields", "content"),
    [
        ("chat", {"messages": (ChatTurn("user", TEXT),), "text": None}, TEXT),
        ("summarize", {}, "Summarize the following text in a few sentences.\n\n" + TEXT),
        (
            "translate",
            ENGLISH_TO_FRENCH,
            "Translate the following text from English to French. "
            "Answer with the translation only.\n\n" + TEXT,
        ),
    ],
)
def test_a_chat_model_is_asked_through_its_template(bench_of, alone_of, task, fields, content):
    alone = alone_of("qwen2")
    prompt = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    assert alone.tokenizer(prompt)["input_ids"][0] == alone.tokenizer.convert_tokens_to_ids(
        "<|im_start|>"
    )
    choice = answer(bench_of("qwen2"), task, **fields)
    assert choice.token_ids == answer_of(alone, prompt)


def test_a_template_of_the_settings_comes_first(bench_of, alone_of):
    bench = bench_of("t5", prompt={"translate": "{source_language}>{target_language}: {text}"})
    choice = answer(bench, "translate", **ENGLISH_TO_FRENCH)
    assert choice.token_ids == answer_of(alone_of("t5"), f"English>French: {TEXT}")


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("m2m100", {"en": "en", "de": "de", "fr": "fr"}),
        ("nllb", {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn"}),
        ("mbart", {"en": "en_XX", "de": "de_DE", "fr": "fr_XX"}),
    ],
)
def test_both_languages_of_a_translation_are_in_the_prompt(bench_of, alone_of, kind, codes):
    bench, alone = bench_of(kind), alone_of(kind)
    pairs = [("en", "fr"), ("en", "de"), ("de", "fr"), ("fr", "en")]
    requests = [
        Request(
            id=at,
            task="translate",
            text=text,
            source_language=source,
            target_language=target,
            params=SHORT,
        )
        for at, (text, (source, target)) in enumerate(
            itertools.product(checkpoints.sentences(6, seed=2), pairs)
        )
    ]
    outputs = bench.answers(requests)
    by_pair: dict[tuple[str, str], list] = {}
    for each in requests:
        source, target = each.source_language, each.target_language
        (choice,) = outputs[each.id].choices
        translation = alone.translation(each.text, codes[source], codes[target])
        assert choice.token_ids == answer_of(alone, **translation)
        by_pair.setdefault((source, target), []).append(choice.token_ids)
    assert by_pair["en", "fr"] != by_pair["de", "fr"]
    assert by_pair["en", "fr"] != by_pair["en", "de"]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("nllb", {"source_language": "en", "target_language": "tlh"}, "target_language is 'tlh'"),
        ("nllb", {"target_language": "fr"}, "source_language is missing"),
        ("mbart", {"source_language": "xx", "target_language": "fr"}, "ar_AR"),
        ("marian_multi", {"target_language": "it"}, ">>deu<<, >>fra<<"),
        ("marian_multi", {}, "target_language is missing"),
        ("marian", {"target_language": "de"}, "knows fr"),
        ("marian", {"source_language": "fr"}, "knows en"),
        ("t5", {"source_language": "en", "target_language": "nonsense"}, "target_language"),
        ("gpt2", {"target_language": "fr"}, "source_language is missing"),
    ],
)
def test_a_language_unknown_to_the_checkpoint_is_refused(bench_of, kind, fields, said):
    refused = failure(bench_of(kind), "translate", **fields)
    assert refused.code == "unknown_language"
    assert said in refused.message


def test_a_text_of_which_a_tokenizer_keeps_nothing_is_refused_in_every_language(bench_of):
    bench, nothing = bench_of("m2m100"), "\u200b"
    for source, target in (("en", "fr"), ("fr", "en"), ("en", "fr")):
        languages = {"source_language": source, "target_language": target}
        assert failure(bench, "translate", nothing, **languages).code == "empty_prompt"


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_chat_needs_a_chat_template(bench_of, kind):
    chat = {"messages": (ChatTurn("user", TEXT),), "text": None}
    assert failure(bench_of(kind), "chat", **chat).code == "no_chat_template"


def test_an_empty_chat_is_refused_with_the_templates_error(bench_of, monkeypatch):
    bench = bench_of("qwen2")
    assert failure(bench, "chat", None, messages=(ChatTurn("user", " "),)).code == "empty_prompt"
    tokenizer = bench.loop.engine.text.prompts.tokenizer
    template = "{{ raise_exception('no: ' + messages[0]['content']) }}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    refused = failure(bench, "chat", None, messages=(ChatTurn("user", "my secret"),))
    assert refused.code == "unsupported_parameter"
    assert "secret" not in refused.message


def test_each_context_limit_is_respected(bench_of):
    long = "water " * 400
    for kind, task, limit in (("gpt2", "generate", 255), ("bart", "summarize", 256)):
        refused = failure(bench_of(kind), task, long)
        assert refused.code == "prompt_too_long"
        assert f"takes {limit}" in refused.message
    refused = failure(bench_of("gpt2"), params=SamplingParams(max_new_tokens=300))
    assert refused.code == "output_too_long"
    assert (
        failure(bench_of("bart"), params=SamplingParams(max_new_tokens=256)).code
        == "output_too_long"
    )
    assert failure(bench_of("t5"), text=long).message.count("takes 128") == 1
    # T5's positions are relative, so the settings may allow longer texts than in training.
    answer(bench_of("t5", max_input_tokens=1000), text=long)


def test_task_specific_params_of_a_checkpoint_are_used(folder_of, alone_of, tmp_path):
    folder = tmp_path / "t5"
    shutil.copytree(folder_of("t5"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["task_specific_params"] = {
        "summarization": {"prefix": "sum up: ", "num_beams": 3, "min_length": 6, "max_length": 15},
        "translation_en_to_fr": {"prefix": "translate English to French: ", "max_length": 9},
    }
    (folder / "config.json").write_text(json.dumps(config))
    spec = EngineSpec(alias="t5", checkpoint=str(folder), device="cpu")
    bench, alone = Bench(GenerateBackend.load(spec), spec), alone_of("t5")
    own = {"num_beams": 3, "min_length": 6, "max_length": 15, "max_new_tokens": None}
    assert answer(bench, "summarize", params=SamplingParams()).token_ids == answer_of(
        alone, f"sum up: {TEXT}", **own
    )
    (output,) = bench.answers(
        [Request(id=9, task="translate", text=TEXT, **ENGLISH_TO_FRENCH)]
    ).values()
    assert output.settings["max_new_tokens"] == 8


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_a_stop_text_ends_an_answer_where_generate_ends_it(bench_of, alone_of, kind, num_beams):
    alone, bench = alone_of(kind), bench_of(kind)
    how = {"max_new_tokens": 24, "do_sample": False, "num_beams": num_beams}
    requests, expected = [], []
    for at, text in enumerate(checkpoints.sentences(6, seed=4)):
        (whole,) = alone.generate(text, **how)
        said = alone.text(whole)
        pairs = [said[each : each + 2] for each in range(len(said) // 2, len(said) - 1)]
        stop = next((each for each in pairs if "\ufffd" not in each and each.isprintable()), None)
        if stop is None:  # its second half is all broken characters
            continue
        requests.append(
            Request(id=at, task="generate", text=text, params=SamplingParams(**how, stop=(stop,)))
        )
        (row,) = alone.generate(text, **how, stop_strings=[stop], tokenizer=alone.tokenizer)
        expected.append((stop, row))
    assert len(requests) >= 3
    outputs = bench.answers(requests)
    for request, (stop, row) in zip(requests, expected, strict=True):
        (choice,) = outputs[request.id].choices
        pad = bench.loop.engine.checkpoint.pad_token_id
        while len(row) > len(choice.token_ids) and row[-1] == pad:
            row.pop()
        assert list(choice.token_ids) == row
        said = alone.text(row)
        # A beam may win by going on to the limit without the text.
        ended = stop in said or row[-1] in bench.loop.engine.checkpoint.eos_token_ids
        assert (choice.finish_reason == "stop") == ended
        assert choice.text == said[: said.index(stop)] if stop in said else said


def test_the_card_says_what_was_loaded(bench_of, alone_of, engine_name):
    card = bench_of("bart").loop.engine.card
    alone = alone_of("bart")
    assert (card.family, card.model_type, card.engine) == ("seq2seq", "bart", engine_name)
    assert (card.device, card.dtype, card.max_context_tokens) == ("cpu", "float32", 256)
    assert card.num_parameters == sum(each.numel() for each in alone.model.parameters())
    assert card.versions.keys() >= {"torch", "transformers"}
    assert card.revision == bench_of("bart", max_sequences=2).loop.engine.card.revision
    assert card.revision != bench_of("pegasus").loop.engine.card.revision
