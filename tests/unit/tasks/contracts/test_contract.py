"""What a producer may send, and what the refusal of the rest says."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from annotated_types import Interval
from hypothesis import HealthCheck, example, given, settings

from engine.protocol.sampling_params import PARAMS, SamplingParams
from tasks.chat import ChatContract
from tasks.contracts.contract import MAX_TEXT_CHARACTERS, Contract
from tasks.errors import ContractError
from tasks.generate import GenerateContract
from tasks.summarize import SummarizeContract
from tasks.translate import TranslateContract
from tests.samples.contracts import CONTRACTS, acceptable_contracts, wild_fields

TEXT = {"text": "a b c"}
LANGUAGES = {"source_language": "en", "target_language": "fr"}


@pytest.mark.parametrize(
    ("task", "fields", "says"),
    [
        ("summarize", {}, "text: is missing"),
        ("summarize", {"text": ""}, "text: is empty; give at least one word"),
        ("summarize", {"text": " \n\t"}, "text: is empty; give at least one word"),
        ("summarize", {"text": "a\x00b"}, "text: holds a NUL byte at position 1; remove it"),
        (
            "summarize",
            {"text": "ab\ud83d"},
            "text: holds half a character (a lone surrogate) at position 2; "
            "decode the source as UTF-8",
        ),
        (
            "summarize",
            {"text": "x" * 50_000_000},
            f"text: has 50000000 characters; at most {MAX_TEXT_CHARACTERS} are taken: "
            "split the document",
        ),
        ("summarize", {"text": 5}, "text: must be a valid string, not 5"),
        ("summarize", {"txt": "a"}, "txt: is not a field of summarize; did you mean text?"),
        ("summarize", {**TEXT, "zzz": 1}, "zzz: is not a field of summarize; known: "),
        (
            "summarize",
            {**TEXT, "num_beams": 0},
            "num_beams: must be greater than or equal to 1, not 0",
        ),
        ("summarize", {**TEXT, "lane": "fast"}, "lane: must be 'interactive' or 'bulk'"),
        ("summarize", {**TEXT, "metadata": {"a": 1}}, "metadata.a: must be a valid string, not 1"),
        ("summarize", {**TEXT, "metadata": {"a": "\x00"}}, "metadata.a: holds a NUL byte"),
        ("summarize", {**TEXT, "metadata": {"\ud83d": "a"}}, r"metadata.'\ud83d': holds half a"),
        ("summarize", {**TEXT, "metadata": {"[key]": 1}}, "metadata.[key]: must be a valid string"),
        ("summarize", {**TEXT, "\ud83d": 1}, r"'\ud83d': is not a field of summarize; known: "),
        ("summarize", {**TEXT, "a\x00\x1b[2J": 1}, r"'a\x00\x1b[2J': is not a field of summarize"),
        ("summarize", {**TEXT, "": 1}, "'': is not a field of summarize"),
        ("summarize", {**TEXT, "[key]": 1}, "[key]: is not a field of summarize"),
        ("summarize", {**TEXT, "x" * 100: 1}, f"{'x' * 64}...: is not a field of summarize"),
        (
            "generate",
            {**TEXT, "top_k": "\ud83d"},
            "top_k: holds half a character (a lone surrogate)",
        ),
        ("summarize", {**TEXT, "custom_id": "a\x00"}, "custom_id: holds a NUL byte"),
        ("summarize", {**TEXT, "tenant": "\ud83d"}, "tenant: holds half a character"),
        ("summarize", {**TEXT, "priority": 1000}, "priority: must be less than or equal to 100"),
        ("summarize", {**TEXT, "deadline": "2026-11-23T12:00:00"}, "deadline: "),
        (
            "generate",
            {**TEXT, "max_length": 5, "max_new_tokens": 5},
            "max_length: is given beside max_new_tokens; both bound the length: give one",
        ),
        (
            "generate",
            {**TEXT, "min_new_tokens": 9, "max_new_tokens": 5},
            "min_new_tokens: is above max_new_tokens; lower it",
        ),
        (
            "generate",
            {**TEXT, "num_return_sequences": 3},
            "num_return_sequences: is 3, but a greedy answer is only one; sample",
        ),
        (
            "generate",
            {**TEXT, "do_sample": False, "temperature": 1.0},
            "do_sample: is false beside",
        ),
        (
            "generate",
            {**TEXT, "do_sample": True, "temperature": 0},
            "temperature: is 0, which is greedy",
        ),
        ("generate", {**TEXT, "temperature": float("inf")}, "temperature: "),
        ("generate", {**TEXT, "seed": 2**63}, "seed: must be less than"),
        (
            "summarize",
            {**TEXT, "by_section": True, "strategy": "truncate"},
            "by_section: makes a part of each section, and strategy truncate makes none",
        ),
        ("summarize", {**TEXT, "by_section": True, "strategy": "fail"}, "by_section: makes a part"),
        ("translate", TEXT, "source_language: is missing; target_language: is missing"),
        (
            "translate",
            {**TEXT, **LANGUAGES, "target_language": "klingon language"},
            "target_language: must be a language code such as en, pt-BR or fra_Latn",
        ),
        ("chat", {"messages": []}, "messages: must have at least 1 item"),
        (
            "chat",
            {"messages": [{"role": "robot", "content": "a"}]},
            "messages.0.role: must be 'system', ",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": " "}]},
            "messages: end with an empty one",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "content": "a"}]},
            "messages: end with the role 'assistant'; the last message must be the user's",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": "a", "\ud83d": 1}]},
            "messages.0: holds half a character (a lone surrogate); decode the source as UTF-8",
        ),
    ],
)
def test_a_refusal_names_the_field_the_fault_and_the_remedy(
    task: str, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ContractError) as raised:
        CONTRACTS[task].parse(fields)
    assert raised.value.code == "invalid_contract"
    assert str(raised.value).startswith(f"{task}: ")
    assert says in str(raised.value)


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(ContractError) as raised:
        GenerateContract.parse({"text": "", "num_beams": 0, "colour": "red"})
    assert {problem.field for problem in raised.value.problems} == {"text", "num_beams", "colour"}


def test_a_name_that_is_no_text_hides_no_other_fault() -> None:
    """pydantic stops at such a name, and cannot say it."""
    with pytest.raises(ContractError) as raised:
        ChatContract.parse({"\ud800": None, "num_beams": 0})
    assert {problem.field for problem in raised.value.problems} == {
        "messages",
        "num_beams",
        r"'\ud800'",
    }


def parts_of(annotation: Any) -> set[Any]:
    return {annotation}.union(*map(parts_of, get_args(annotation)))


def fields_of(*kinds: type) -> set[str]:
    fields = GenerateContract.model_fields.items()
    return {name for name, field in fields if parts_of(field.annotation) & set(kinds)}


NUMBERS = sorted(fields_of(int, float))
TRUTH_VALUES = sorted(fields_of(bool))


def test_every_number_and_truth_value_of_a_contract_is_tried_below() -> None:
    assert {"max_new_tokens", "temperature", "seed", "priority", "time_limit_seconds"} < {*NUMBERS}
    assert TRUTH_VALUES == ["do_sample", "early_stopping", "json_object", "use_cache"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        *(True, False, "1", "NaN", b"1", [1], {}),
        *(float("nan"), float("inf"), float("-inf")),
        *(10**30, 10**5000, -(10**30)),
    ],
    ids=lambda value: str(value) if not isinstance(value, int) else f"{value.bit_length()} bits",
)
def test_only_a_number_is_accepted_as_a_number(name: str, value: Any) -> None:
    for task in (SummarizeContract, GenerateContract):
        with pytest.raises(ContractError) as raised:
            task.parse({**TEXT, name: value})
        assert [problem.field for problem in raised.value.problems] == [name]
        assert len(str(raised.value)) < 200


@pytest.mark.parametrize("name", TRUTH_VALUES)
@pytest.mark.parametrize("value", [1, 0, 1.0, "true", "yes", b"1", [True]], ids=repr)
def test_a_truth_value_is_true_or_false(name: str, value: Any) -> None:
    with pytest.raises(ContractError, match=f"{name}: must be true or false"):
        GenerateContract.parse({**TEXT, name: value})


def test_a_whole_number_may_be_written_with_a_point() -> None:
    """In JSON 5.0 and 5 are one number, and JavaScript knows but one kind."""
    assert GenerateContract.parse({**TEXT, "seed": 5.0}).seed == 5
    assert GenerateContract.parse({**TEXT, "temperature": 1}).temperature == 1.0
    with pytest.raises(ContractError, match="seed: must be a valid integer"):
        GenerateContract.parse({**TEXT, "seed": 5.5})


def test_a_source_of_texts_has_numbers_and_truth_values_that_read_as_such() -> None:
    fields = {"seed": "7", "temperature": "0.5", "do_sample": "true", "early_stopping": 0}
    contract = GenerateContract.parse({**TEXT, **fields}, exact_types=False)

    assert (contract.seed, contract.temperature) == (7, 0.5)
    assert (contract.do_sample, contract.early_stopping) == (True, False)
    for wrong in ({"seed": True}, {"seed": "true"}, {"top_p": "nan"}, {"do_sample": "perhaps"}):
        with pytest.raises(ContractError):
            GenerateContract.parse({**TEXT, **wrong}, exact_types=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": b"a text"},
        {**TEXT, "custom_id": b"1"},
        {**TEXT, "tenant": b"\x00"},
        {**TEXT, "stop": [b"."]},
        {**TEXT, "metadata": {"a": b"b"}},
        {**TEXT, "deadline": True},
    ],
    ids=repr,
)
@pytest.mark.parametrize("exact_types", [True, False])
def test_bytes_are_no_text_and_a_truth_value_no_instant(
    fields: dict[str, Any], exact_types: bool
) -> None:
    with pytest.raises(ContractError):
        GenerateContract.parse(fields, exact_types=exact_types)


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ["a secret"]},
        {"text": {"a secret": 1}},
        {"text": "a secret\x00"},
        {**TEXT, "lane": "a secret"},
        {**TEXT, "custom_id": "a secret" * 100},
    ],
)
def test_a_refusal_does_not_quote_the_users_text(fields: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as raised:
        GenerateContract.parse(fields)
    assert "a secret" not in str(raised.value)


def test_one_stop_text_is_a_list_of_one() -> None:
    assert GenerateContract.parse({**TEXT, "stop": "."}).work()["stop"] == ["."]


def test_the_work_is_the_tasks_fields_and_the_params_that_were_given() -> None:
    contract = ChatContract.parse(
        {
            "messages": [{"role": "user", "content": "hello"}],
            "temperature": 0.5,
            "tenant": "press",
            "priority": 5,
            "metadata": {"a": "b"},
        }
    )
    assert contract.work() == {
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
    }
    assert contract.num_characters == 5


@given(contract=acceptable_contracts())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_stored_part_of_a_contract_parses_to_the_same_contract(contract: Contract) -> None:
    again = type(contract).parse(json.loads(json.dumps(contract.work())))
    assert again.work() == contract.work()
    assert again.num_characters == contract.num_characters


@given(wild=wild_fields())
@example(wild=(ChatContract, {"\ud800": None}))
@example(wild=(ChatContract, {"messages": [], "[key]": 1}))
@example(wild=(GenerateContract, {"text": "a", "": "\x00"}))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_refused_is_refused_with_a_named_field(
    wild: tuple[type[Contract], dict[str, Any]],
) -> None:
    contract, fields = wild
    refusal = refusal_of(contract, fields)
    if refusal is None:
        return
    assert refusal.problems
    # A name that could not be printed is told as Python writes it.
    known = {*contract.model_fields, *fields, *map(repr, fields)}
    for problem in refusal.problems:
        assert problem.fault
        assert any(problem.field == name or problem.field.startswith(f"{name}.") for name in known)
    # It can be printed, logged and kept in a database.
    assert "\x00" not in str(refusal)
    str(refusal).encode()


def refusal_of(contract: type[Contract], fields: dict[str, Any]) -> ContractError | None:
    try:
        contract.parse(fields)
    except ContractError as refusal:
        return refusal
    return None


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"tools": []}, "may not hold tools"),
        ({"messages": []}, "may not hold messages"),
        ({"add_generation_prompt": False}, "may not hold add_generation_prompt"),
        ({"tokenize": True}, "may not hold tokenize"),
        ({"a b": 1}, "has a name that is none"),
        ({"a": float("nan")}, "finite number"),
        ({"a": "\ud800"}, "half a character"),
        ({"a": ["\x00"]}, "NUL byte"),
        ({"a": "x" * 9000}, "at most 8192"),
        ({f"a{each}": 1 for each in range(33)}, "chat_template_kwargs"),
    ],
)
def test_switches_of_a_chat_template_are_bounded_and_named(switches, says):
    with pytest.raises(ContractError, match=says):
        ChatContract.parse(
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": switches}
        )


def test_switches_of_a_chat_template_are_kept_for_the_recipe():
    switches = {"enable_thinking": False, "depth": {"of": [1, None]}}
    contract = ChatContract.parse(
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": switches}
    )
    assert contract.work()["chat_template_kwargs"] == switches


def test_a_summary_has_the_language_that_it_was_asked_for() -> None:
    contract = SummarizeContract.parse({**TEXT, "style": "a haiku", "output_language": "fr"})
    assert contract.language_of_output == "fr"
    assert contract.work() == {**TEXT, "style": "a haiku", "output_language": "fr"}
    for name, wrong in (("style", " "), ("focus", "x" * 501), ("output_language", "no language")):
        with pytest.raises(ContractError, match=name):
            SummarizeContract.parse({**TEXT, name: wrong})


TRANSLATE = {"text": "The harbour.", "source_language": "en", "target_language": "fr"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"harbour": "port", "Tidemill": None}, {"harbour": "port", "Tidemill": None}),
        ([["harbour", "port"], ["Tidemill", None]], {"harbour": "port", "Tidemill": None}),
        ({" sea   salt ": " sel  marin "}, {"sea salt": "sel marin"}),
        ({"harbour": " "}, {"harbour": None}),
        ({"Harbour": "port", "harbour": "port"}, {"Harbour": "port"}),
    ],
)
def test_a_glossary_is_kept_as_it_is_meant(given, kept):
    contract = TranslateContract.parse({**TRANSLATE, "glossary": given})
    assert contract.work()["glossary"] == kept


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_an_empty_glossary_is_none(nothing):
    assert "glossary" not in TranslateContract.parse({**TRANSLATE, "glossary": nothing}).work()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"Bank": "banque", "bank": "rive"}, "has two translations for one term, in entries 1"),
        ([["bank", "banque"], ["x", "y"], ["bank", "rive"]], "in entries 1 and 3"),
        ({"caf\u00e9": "a", "cafe\u0301": "b"}, "two translations for one term"),
        ({"sea  salt": "a", "sea salt": None}, "two translations for one term"),
        ({"": "x"}, "has no term in entry 1"),
        ({"a": "b", " \n": "x"}, "has no term in entry 2"),
        ({"a": 3}, "has a translation that is no text in entry 1"),
        ([["a"]], "has no [term, translation] in entry 1"),
        ([["a", "b", "c"]], "has no [term, translation] in entry 1"),
        ({"a" * 300: "b"}, "has a term of 300 characters in entry 1"),
        ({f"term {each}": None for each in range(5001)}, "has more than 5000 terms"),
        ("harbour=port", "must be an object of term to translation"),
        (7, "must be an object of term to translation"),
        ({"a\x00": "b"}, "holds a NUL byte"),
        ({"a": "\ud800"}, "half a character"),
    ],
)
def test_a_wrong_glossary_is_refused_without_its_words(given, fault):
    with pytest.raises(ContractError) as refused:
        TranslateContract.parse({**TRANSLATE, "glossary": given})
    (problem,) = refused.value.problems
    assert problem.field == "glossary"
    assert fault in problem.fault
    assert "banque" not in str(refused.value)


RANGES = [
    (name, limits)
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items()
    for limits in parts_of(hint)
    if isinstance(limits, Interval)
]


def test_every_number_among_the_decoding_parameters_has_a_range() -> None:
    truth_values_and_texts = {"do_sample", "early_stopping", "stop"}
    assert {name for name, _ in RANGES} == set(PARAMS) - truth_values_and_texts


@pytest.mark.parametrize(("name", "limits"), RANGES)
def test_a_contract_refuses_values_outside_the_range_that_the_engine_states(
    name: str, limits: Any
) -> None:
    too_small = limits.ge - 1 if limits.ge is not None else limits.gt
    too_large = limits.le + 1 if limits.le is not None else limits.lt
    for value, fault in ((too_small, "greater"), (too_large, "less")):
        with pytest.raises(ContractError, match=f"{name}: must be {fault} than"):
            GenerateContract.parse({**TEXT, name: value})
