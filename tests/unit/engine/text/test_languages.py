import pytest

from engine.errors import UnknownLanguage
from engine.text.languages import Languages

NLLB = ("eng_Latn", "fra_Latn", "arb_Arab", "arz_Arab", "zho_Hans", "zho_Hant", "nob_Latn")
MBART = ("en_XX", "fr_XX", "zh_CN", "he_IL")
MARIAN = (">>fra<<", ">>deu<<", ">>por<<")


@pytest.mark.parametrize(
    ("own", "language", "code"),
    [
        (NLLB, "fr", "fra_Latn"),
        (NLLB, "fra", "fra_Latn"),
        (NLLB, "fra_Latn", "fra_Latn"),
        (NLLB, "ar", "arb_Arab"),
        (NLLB, "arz", "arz_Arab"),
        (NLLB, "zh", "zho_Hans"),
        (NLLB, "zh-TW", "zho_Hant"),
        (NLLB, "no", "nob_Latn"),
        (MBART, "en-GB", "en_XX"),
        (MBART, "zh", "zh_CN"),
        (MBART, "iw", "he_IL"),
        (MARIAN, "de", ">>deu<<"),
        (MARIAN, "pt-BR", ">>por<<"),
        (("en", "ns", "ast"), "ns", "ns"),  # a code of M2M100's that is in no standard
    ],
)
def test_a_users_code_becomes_the_checkpoints_own(own, language, code):
    assert Languages(own).own_code("target_language", language) == code


@pytest.mark.parametrize("language", ["gsw", "xx", "French", "", "x" * 500, None, "fr\ud800"])
def test_an_unknown_language_is_refused_with_those_that_are_known(language):
    with pytest.raises(UnknownLanguage) as refused:
        Languages(("de_DE", "fr_XX")).own_code("target_language", language)
    assert "target_language" in str(refused.value)
    assert "de_DE, fr_XX" in str(refused.value)
    assert len(str(refused.value)) < 200


def test_a_neighbouring_language_is_another_language():
    with pytest.raises(UnknownLanguage):
        Languages(("hr_HR",)).own_code("target_language", "bs")


def test_a_long_list_is_abbreviated():
    codes = [f"{first}{second}_Latn" for first in "abcdef" for second in "klmno"]
    with pytest.raises(UnknownLanguage, match="and 18 more"):
        Languages(codes).own_code("target_language", "fr")


def test_the_settings_narrow_what_the_checkpoint_knows():
    narrowed = Languages(NLLB, allowed=("en", "fr"))
    assert narrowed.own_code("target_language", "fr") == "fra_Latn"
    with pytest.raises(UnknownLanguage, match="knows en, fr"):
        narrowed.own_code("target_language", "zh")


def test_a_language_in_words():
    assert Languages(()).english_name("target_language", "fr") == "French"
    with pytest.raises(UnknownLanguage):
        Languages(()).english_name("target_language", "qq")
    with pytest.raises(UnknownLanguage):
        Languages((), allowed=("de",)).english_name("target_language", "fr")
