"""Personal data is found by its form, and text that only looks similar is not."""

import pytest

from tasks.configuration.masking import Masking, MaskingRules, masking_of
from tasks.errors import SettingsError
from worker.errors import PatternTooSlow
from worker.masking.finders import finders_of
from worker.masking.masker import Masker, Maskers
from worker.masking.numbers import card_lengths


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
        ("email", "python@3.11, node@20.1.0 and x@2", None),
        ("email", "an@a.museum, an@xn--bcher-kva.xn--p1ai", "⟦EMAIL_1⟧, ⟦EMAIL_2⟧"),
        ("url_secret", "https://ada:s3cret@host/x", "https://⟦SECRET_1⟧@host/x"),
        ("url_secret", "redis://:pw@h:6379/0", "redis://⟦SECRET_1⟧@h:6379/0"),
        (
            "url_secret",
            "GET https://h/x?page=2&api_key=abc&X-Amz-Signature=ff#access_token=zz",
            "GET https://h/x?page=2&api_key=⟦SECRET_1⟧&X-Amz-Signature=⟦SECRET_2⟧"
            "#access_token=⟦SECRET_3⟧",
        ),
        ("url_secret", "https://h/x?page=2 token=abc", "https://h/x?page=2 token=abc"),
        (
            "url_secret",
            "https://h/?apiKey=a;code=b&x-sig=c",
            "https://h/?apiKey=⟦SECRET_1⟧;code=⟦SECRET_2⟧&x-sig=⟦SECRET_3⟧",
        ),
        (
            "url_secret",
            "https://h/?monkey=1&author=2&design=3&zipcode=4&keyword=5&country_code=6",
            None,
        ),
        ("ip", "from 192.168.0.1:80 to ::1", "from ⟦IP_1⟧:80 to ⟦IP_2⟧"),
        ("ip", "2001:db8::ff00:42:8329", "⟦IP_1⟧"),
        ("ip", "at 12:30:45, v1.2.3, 1.2.3.4.5, 300.1.1.1", None),
        ("ip", "std::vector, C::D, dead::beef, 00:11:22:33:44:55", None),
        (
            "ip",
            "[2001:db8::1]:443, fe80::1%eth0, ::ffff:192.0.2.1",
            "[⟦IP_1⟧]:443, ⟦IP_2⟧%eth0, ⟦IP_3⟧",
        ),
        ("card", "ISBN 9783161484100, 20261129123045, order 1234567890123456", None),
        ("phone", "ISBN 978-3-16-148410-0, 2026-11-29, version 1.2.3.4", None),
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
        ("phone", "call 0049 30 901820 or 001 650-253-0000.", "call ⟦PHONE_1⟧ or ⟦PHONE_2⟧."),
        ("phone", "00 49 30 901820, 00-1 650-253-0000", "⟦PHONE_1⟧, ⟦PHONE_2⟧"),
        ("phone", "at 12:00 49 30 901820, 5.00 49 30 901820", None),
        ("phone", "order 20260131, 00000000, 10049 30 901820", None),
        ("phone", "order 20260131, call 030 901820", None),
        # Other forms: quoted, in a URL, with an apostrophe, with a number.
        ("email", "o'brien@a.example, 'ada@a.example'", "⟦EMAIL_1⟧, '⟦EMAIL_2⟧'"),
        (
            "email",
            '"ada l"@a.example ada@[192.0.2.1] ada@[IPv6:::1]',
            "⟦EMAIL_1⟧ ⟦EMAIL_2⟧ ⟦EMAIL_3⟧",
        ),
        (
            "email",
            "https://h.example/?to=ada%40a.example&x=1",
            "https://h.example/?to=⟦EMAIL_1⟧&x=1",
        ),
        ("url_secret", "www.h.example/?password=x", "www.h.example/?password=⟦SECRET_1⟧"),
        ("url_secret", "GET /a?page=1&api_key=x HTTP", "GET /a?page=1&api_key=⟦SECRET_1⟧ HTTP"),
        ("url_secret", "[a](https://h/?token=x).", "[a](https://h/?token=⟦SECRET_1⟧)."),
        ("url_secret", "https://h/?pass=a&pin=b", "https://h/?pass=⟦SECRET_1⟧&pin=⟦SECRET_2⟧"),
        ("url_secret", "a ? b : c; key=5; x&&key==y ok?yes=1", None),
        ("email", r'"ada\"l"@a.example, "@"@a.example', "⟦EMAIL_1⟧, ⟦EMAIL_2⟧"),
        (
            "email",
            "a!b#c@a.example, ada{b}@a.example, *ada@a.example*",
            "⟦EMAIL_1⟧, ⟦EMAIL_2⟧, *⟦EMAIL_3⟧*",
        ),
        ("url_secret", "postgres://u:p/w@h/db", "postgres://⟦SECRET_1⟧@h/db"),
        ("url_secret", "amqp://u:p?w#x@h", "amqp://⟦SECRET_1⟧@h"),
        ("url_secret", "https://h:80/@ada, http://h:80/a@b, https://h/a:b@c", None),
        ("url_secret", "http://h:80?a@b, https://[::1]:80/a@b, https://h/@ada", None),
        ("url_secret", r"https:\/\/ada:pw@h\/x", r"https:\/\/⟦SECRET_1⟧@h\/x"),
        (
            "url_secret",
            "https://h/?user[password]=a&tokens[]=b&u%5Bpw%5D=c&a[key]=d",
            "https://h/?user[password]=⟦SECRET_1⟧&tokens[]=⟦SECRET_2⟧&u%5Bpw%5D=⟦SECRET_3⟧"
            "&a[key]=⟦SECRET_4⟧",
        ),
        (
            "url_secret",
            "https://h/?to=https%3A%2F%2Fg%2F%3Fpage%3D2%26token%3Dabc%26x%3d1&y=2",
            "https://h/?to=https%3A%2F%2Fg%2F%3Fpage%3D2%26token%3D⟦SECRET_1⟧%26x%3d1&y=2",
        ),
        ("ip", "192.168.000.001, IP:2001:db8::1, _10.0.0.1_", "⟦IP_1⟧, IP:⟦IP_2⟧, _⟦IP_3⟧_"),
        ("ip", "aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99, std::a1", None),
        ("card", "4111.1111.1111.1111 4111\t1111\t1111\t1111", "⟦CARD_1⟧ ⟦CARD_2⟧"),
        ("card", "4111 1111\n1111 1111 and 3782  822463  10005", "⟦CARD_1⟧ and ⟦CARD_2⟧"),
        ("card", "-4111111111111111_ card-4111111111111111", "-⟦CARD_1⟧_ card-⟦CARD_1⟧"),
        ("card", "12-4111111111111111, 2019\n2020\n2021\n2022", None),
        ("iban", "DE89  3704 0044\n0532 0130 00.", "⟦IBAN_1⟧."),
        (
            "iban",
            "DE 89 3704 0044 0532 0130 00, DE89/3704/0044/0532/0130/00",
            "⟦IBAN_1⟧, ⟦IBAN_2⟧",
        ),
        ("iban", "DE89   3704   0044   0532   0130   00", "⟦IBAN_1⟧"),
        ("iban", "it 89 3704 0044 0532 0130 00", None),
    ],
)
def test_a_rule_finds_its_kind(rule: str, text: str, seen: str | None) -> None:
    assert masked(text, rule) == (text if seen is None else seen)


@pytest.mark.parametrize(
    ("rule", "text", "seen"),
    [
        # Scripts without spaces, with particles after a name.
        ("email", "请写信给ada@a.example并告诉他", "请写信给⟦EMAIL_1⟧并告诉他"),
        ("email", "ada@a.example로 ถึงada@a.exampleนะ", "⟦EMAIL_1⟧로 ถึง⟦EMAIL_1⟧นะ"),
        ("email", "用户@例子.公司", "⟦EMAIL_1⟧"),
        ("card", "卡号4111111111111111号", "卡号⟦CARD_1⟧号"),
        ("iban", "账户DE89370400440532013000是", "账户⟦IBAN_1⟧是"),
        ("ip", "地址192.168.0.1是", "地址⟦IP_1⟧是"),
        # Digits, dashes, spaces and signs outside ASCII.
        ("card", "４１１１１１１１１１１１１１１１", "⟦CARD_1⟧"),
        ("card", "٤١١١ ١١١١ ١١١١ ١١١١", "⟦CARD_1⟧"),
        ("card", "४१११११११११११११११ 4111–1111‑1111−1111", "⟦CARD_1⟧ ⟦CARD_2⟧"),
        ("card", "4111\u202f1111\u20091111\u200b1111", "⟦CARD_1⟧"),
        ("iban", "ＤＥ８９\u202f3704\u20070044\u30000532 0130 00", "⟦IBAN_1⟧"),
        ("ip", "１９２．168.0.1", "⟦IP_1⟧"),
        ("email", "ada＠mail．example", "⟦EMAIL_1⟧"),
        ("email", "𝐚𝐝𝐚@𝐦𝐚𝐢𝐥.𝐞𝐱𝐚𝐦𝐩𝐥𝐞 ada﹫mail.example", "⟦EMAIL_1⟧ ⟦EMAIL_2⟧"),
        # Invisible marks: direction marks, joiners, a byte order mark.
        ("card", "4111\u200e 1111\u200f 1111 1111", "⟦CARD_1⟧"),
        ("card", "\u202e4111\u20661111\u20691111 1111\u202c", "\u202e⟦CARD_1⟧\u202c"),
        ("card", "4111\u180e1111\u034f1111\u20611111", "⟦CARD_1⟧"),
        (
            "card",
            "4111111111111111\u200b5 4111111111111111\ufe0f",
            "⟦CARD_1⟧\u200b5 ⟦CARD_1⟧\ufe0f",
        ),
        ("card", "4111111111111111¹ and 4111111111111111④", "⟦CARD_1⟧¹ and ⟦CARD_1⟧④"),
        ("iban", "DE\u200b89 3704\u200e 0044 0532 0130 00", "⟦IBAN_1⟧"),
        ("email", "ada\u200b.l@mail\u2060.example", "⟦EMAIL_1⟧"),
        ("ip", "1\u200b92.168.\u200b0.1", "⟦IP_1⟧"),
    ],
)
def test_a_form_is_found_in_every_script(rule: str, text: str, seen: str) -> None:
    assert masked(text, rule) == seen
    assert masked(text, "email", "url_secret", "ip", "card", "iban") == seen


def test_restored_values_are_as_the_user_wrote_them() -> None:
    text = "ＤＥ８９ 3704 0044 0532 0130 00 und ４１１１１１１１１１１１１１１１"
    work = Masker(finders_of(MaskingRules(frozenset({"iban", "card"})))).masked({"text": text})
    assert work.put_back(work.contract["text"]) == text


def test_a_region_reads_numbers_without_a_countrys_code() -> None:
    assert masked("call 030 901820", "phone", phone_regions=frozenset({"DE"})) == "call ⟦PHONE_1⟧"


def test_digits_within_an_iban_are_no_card_and_an_address_in_a_url_no_email() -> None:
    text = "DE89370400440532013000 https://ada@h.example:pw@host.example"
    assert masked(text, "iban", "card", "email", "url_secret", "phone", "ip") == (
        "⟦IBAN_1⟧ https://⟦SECRET_1⟧@host.example"
    )


def test_own_patterns_go_first() -> None:
    assert masked("K-123456@x.de", "email", patterns=(("CUSTOMER", "K-[0-9]{6}"),)) == (
        "⟦CUSTOMER_1⟧@x.de"
    )


def test_a_placeholder_that_a_text_brings_along_is_not_used_again() -> None:
    assert masked("⟦EMAIL_1⟧ is a@b.de", "email") == "⟦EMAIL_1⟧ is ⟦EMAIL_2⟧"


@pytest.mark.parametrize(
    "text",
    [
        *("a" * 50_000, "4 " * 50_000, "a." * 50_000 + "@", "DE89 " * 20_000, "::" * 50_000),
        *("@" * 9999, "a@" * 20_000, '"@' * 20_000, "?a=" * 20_000, "://" * 20_000),
        *("://a:b" * 10_000, "://a:" + "b/" * 20_000, "?%3D%26" * 10_000, "?a[" * 20_000),
        *("4\u200e" * 20_000, '"\\\\' * 20_000 + '"@', "{@" * 20_000, "DE 8" * 20_000),
        *("&key" * 20_000, "?" + "token" * 10_000, "：：１．" * 20_000, "\u200b4" * 20_000),
    ],
    ids=lambda text: text[:4],
)
def test_no_text_takes_long(text: str) -> None:
    masked(text, "email", "url_secret", "ip", "card", "iban", "phone")


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*a){25}b"])
def test_a_pattern_that_takes_for_ever_fails_the_job_in_words(pattern: str) -> None:
    text = "a" * 5000 + "!"
    with pytest.raises(PatternTooSlow, match="the pattern K of") as raised:
        masked(text, patterns=(("K", pattern),))
    assert "aaaa" not in str(raised.value)
    assert not raised.value.retryable


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
    assert (both.rules, both.patterns, both.phone_regions) == (
        {"email", "card"},
        (("K", "K-[0-9]+"),),
        {"DE"},
    )
    maskers = Maskers(masking)
    assert maskers.masker_for("chat", "one") is maskers.masker_for("chat", "two")
    assert Maskers(Masking()).masker_for("chat", "one") is None


def test_a_narrower_table_uncovers_nothing_by_a_kind_or_a_region_of_its_own() -> None:
    masking = masking_of(
        {
            "rules": ["phone"],
            "patterns": {"K": "K-[0-9]+"},
            "phone_region": "DE",
            "tasks": {"chat": {"phone_region": "GB"}},
            "tenants": {"acme": {"patterns": {"K": "X-[0-9]+"}}},
        }
    )
    masker = Maskers(masking).masker_for("chat", "acme")
    assert masker is not None
    text = "K-1 and X-2, call 030 901820 or 020 7946 0958"
    work = masker.masked({"text": text})
    assert work.contract["text"] == "⟦K_1⟧ and ⟦K_2⟧, call ⟦PHONE_1⟧ or ⟦PHONE_2⟧"
    assert work.put_back(work.contract["text"]) == text


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
        ({"patterns": {"K": "a{99999999999}"}}, "masking.patterns.K is no regular expression"),
        ({"patterns": {"K": "(" * 5000}}, "masking.patterns.K is no regular expression"),
        ({"patterns": {"K": "x*"}}, "masking.patterns.K finds an empty text"),
        ({"finders": ["json"]}, "masking.finders: 'json' must be 'module:object'"),
        ({"phone_region": "Germany"}, "masking.phone_region must be a country"),
    ],
)
def test_a_wrong_setting_is_named(table: object, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        masking_of(table)


def test_a_region_without_telephones_is_named_when_the_worker_starts() -> None:
    with pytest.raises(SettingsError, match="XX is no region"):
        Maskers(masking_of({"rules": ["phone"], "phone_region": "XX"}))


@pytest.mark.parametrize("finder", ["no_such_module:x", "json:nothing", "json:dumps"])
def test_a_finder_that_is_none_is_named_when_the_worker_starts(finder: str) -> None:
    with pytest.raises(SettingsError, match=finder):
        Maskers(masking_of({"tenants": {"acme": {"finders": [finder]}}}))


def test_a_card_of_any_length_is_found_by_luhns_sum_and_no_other_number_is() -> None:
    for length in range(13, 20):
        digits = "4000" + "0" * (length - 5)
        checks = [each for each in "0123456789" if length in card_lengths(digits + each)]
        assert len(checks) == 1
        assert masked(f"card {digits}{checks[0]}.", "card") == "card ⟦CARD_1⟧."
    assert card_lengths("4 " * 19) == []
    assert card_lengths("4111 1111 1111 1111") == [16]
    assert card_lengths("4111 1111 1111 1112") == []
