"""What has the form of something personal is found, and what only looks like it is not."""

import pytest

from tasks.configuration.masking import Masking, MaskingRules, masking_of
from tasks.errors import SettingsError
from worker.masking.finders import finders_of
from worker.masking.masker import Masker, Maskers


def masked(text: str, *rules: str, **more: object) -> str:
    finders = finders_of(MaskingRules(frozenset(rules), **more))  # type: ignore[arg-type]
    made = Masker(finders).masked({"text": text}).contract["text"]
    assert isinstance(made, str)
    return made


@pytest.mark.parametrize(
    ("rule", "text", "seen"),
    [
        ("email", "to ada.l+x@mail.example.org, please", "to ⟦EMAIL_1⟧, please"),
        ("email", "<jörg@bücher.example>.", "<⟦EMAIL_1⟧>."),
        ("email", "a@b.de and c@d.de and a@b.de", "⟦EMAIL_1⟧ and ⟦EMAIL_2⟧ and ⟦EMAIL_1⟧"),
        ("email", "see @ada, or 3 @ 4.50", "see @ada, or 3 @ 4.50"),
        ("url_secret", "https://ada:s3cret@host/x", "https://⟦SECRET_1⟧@host/x"),
        ("url_secret", "redis://:pw@h:6379/0", "redis://⟦SECRET_1⟧@h:6379/0"),
        (
            "url_secret",
            "GET https://h/x?page=2&api_key=abc&X-Amz-Signature=ff#access_token=zz",
            "GET https://h/x?page=2&api_key=⟦SECRET_1⟧&X-Amz-Signature=⟦SECRET_2⟧"
            "#access_token=⟦SECRET_3⟧",
        ),
        ("url_secret", "https://h/x?page=2 token=abc", "https://h/x?page=2 token=abc"),
        ("ip", "from 192.168.0.1:80 to ::1", "from ⟦IP_1⟧:80 to ⟦IP_2⟧"),
        ("ip", "2001:db8::ff00:42:8329", "⟦IP_1⟧"),
        ("ip", "at 12:30:45, v1.2.3, 1.2.3.4.5, 300.1.1.1", None),
        ("card", "card 4111 1111 1111 1111 12/27", "card ⟦CARD_1⟧ 12/27"),
        ("card", "4111111111111111 5500-0000-0000-0004", "⟦CARD_1⟧ ⟦CARD_2⟧"),
        ("card", "378282246310005.", "⟦CARD_1⟧."),
        ("card", "4111 1111 1111 1112 and 2222222222222222", None),
        ("card", "41111111111111110000000", None),
        ("iban", "DE89 3704 0044 0532 0130 00 AND MORE", "⟦IBAN_1⟧ AND MORE"),
        ("iban", "gb82west12345698765432,FR1420041010050500013M02606", "⟦IBAN_1⟧,⟦IBAN_2⟧"),
        ("iban", "NO93 8601 1117 947 NO93 8601 1117 947", "⟦IBAN_1⟧ ⟦IBAN_1⟧"),
        ("iban", "DE88 3704 0044 0532 0130 00", None),
        ("phone", "call +49 30 901820 or +1 650-253-0000", "call ⟦PHONE_1⟧ or ⟦PHONE_2⟧"),
        ("phone", "order 20260131, call 030 901820", None),
    ],
)
def test_a_rule_finds_its_kind(rule: str, text: str, seen: str | None) -> None:
    assert masked(text, rule) == (text if seen is None else seen)


def test_a_region_reads_numbers_without_a_countrys_code() -> None:
    assert masked("call 030 901820", "phone", phone_region="DE") == "call ⟦PHONE_1⟧"


def test_digits_within_an_iban_are_no_card_and_an_address_in_a_url_no_email() -> None:
    text = "DE89370400440532013000 https://ada@h.example:pw@host.example"
    assert masked(text, "iban", "card", "email", "url_secret", "phone", "ip") == (
        "⟦IBAN_1⟧ https://⟦SECRET_1⟧@host.example"
    )


def test_own_patterns_go_first() -> None:
    assert masked("K-123456@x.de", "email", patterns={"CUSTOMER": "K-[0-9]{6}"}) == (
        "⟦CUSTOMER_1⟧@x.de"
    )


def test_a_placeholder_that_a_text_brings_along_is_not_used_again() -> None:
    assert masked("⟦EMAIL_1⟧ is a@b.de", "email") == "⟦EMAIL_1⟧ is ⟦EMAIL_2⟧"


@pytest.mark.parametrize(
    "text",
    ["a" * 50_000, "4 " * 50_000, "a." * 50_000 + "@", "DE89 " * 20_000, "::" * 50_000, "@" * 9999],
)
def test_no_text_takes_long(text: str) -> None:
    masked(text, "email", "url_secret", "ip", "card", "iban", "phone")


def test_a_job_is_under_all_rules_that_apply_to_it() -> None:
    masking = masking_of(
        {
            "rules": ["email"],
            "tasks": {"chat": {"rules": ["card"]}},
            "tenants": {"acme": {"patterns": {"K": "K-[0-9]+"}, "phone_region": "DE"}},
        }
    )
    assert masking.rules_for("generate", "other").rules == {"email"}
    both = masking.rules_for("chat", "acme")
    assert (both.rules, dict(both.patterns), both.phone_region) == (
        {"email", "card"},
        {"K": "K-[0-9]+"},
        "DE",
    )
    maskers = Maskers(masking)
    assert maskers.masker_for("chat", "one") is maskers.masker_for("chat", "two")
    assert Maskers(Masking()).masker_for("chat", "one") is None


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([], "masking must be a table"),
        ({"rule": ["email"]}, "masking.rule is not a setting; known: rules, patterns"),
        ({"rules": ["emails"]}, "masking.rules: 'emails' is none of email, url_secret"),
        ({"rules": "email"}, "masking.rules must be a list of texts"),
        ({"tasks": {"sing": {}}}, "masking.tasks.sing is not a task"),
        ({"tenants": {"a": {"rules": [1]}}}, r"masking.tenants.a.rules must be a list"),
        ({"patterns": {"low": "x"}}, "masking.patterns.low: a kind is capital letters"),
        ({"patterns": {"K": "("}}, "masking.patterns.K is no regular expression"),
        ({"patterns": {"K": "x*"}}, "masking.patterns.K finds an empty text"),
        ({"finders": ["json"]}, "masking.finders: 'json' must be 'module:object'"),
        ({"phone_region": "Germany"}, "masking.phone_region must be a country"),
    ],
)
def test_a_wrong_setting_is_named(table: object, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        masking_of(table)


@pytest.mark.parametrize("finder", ["no_such_module:x", "json:nothing", "json:dumps"])
def test_a_finder_that_is_none_is_named_when_the_worker_starts(finder: str) -> None:
    with pytest.raises(SettingsError, match=finder):
        Maskers(masking_of({"tenants": {"acme": {"finders": [finder]}}}))
