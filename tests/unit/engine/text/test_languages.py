import langcodes
import pytest
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_CODES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50_CODES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from engine.errors import UnknownLanguage
from engine.text.languages import Languages

NLLB = ("eng_Latn", "fra_Latn", "arb_Arab", "arz_Arab", "zho_Hans", "zho_Hant", "nob_Latn")
NLLB_ALL = tuple(FAIRSEQ_LANGUAGE_CODES)
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
        (("en", "ns", "ast"), "ns", "ns"),  # a code of M2M100 that is in no standard
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


def test_a_language_has_its_english_name():
    assert Languages(()).english_name("target_language", "fr") == "French"
    with pytest.raises(UnknownLanguage):
        Languages(()).english_name("target_language", "qq")
    with pytest.raises(UnknownLanguage):
        Languages((), allowed=("de",)).english_name("target_language", "fr")


M2M100 = ("sr", "zh", "no", "ar", "fa", "pt", "kk", "ko")
MBART50 = ("ar_AR", "zh_CN", "pt_XX", "de_DE", "fa_IR", "en_XX")


@pytest.mark.parametrize(
    ("own", "language", "code"),
    [
        (NLLB_ALL, "sr", "srp_Cyrl"),
        (NLLB_ALL, "ps", "pbt_Arab"),
        (NLLB_ALL, "qu", "quy_Latn"),
        (NLLB_ALL, "ar-EG", "arz_Arab"),
        (NLLB_ALL, "ar-arz", "arz_Arab"),  # an extended language
        (NLLB_ALL, "zh-yue", "yue_Hant"),
        (NLLB_ALL, "zh-cmn-Hant", "zho_Hant"),
        (NLLB_ALL, "ar", "arb_Arab"),
        (NLLB_ALL, "fa-AF", "prs_Arab"),
        (NLLB_ALL, "zh-HK", "zho_Hant"),
        (NLLB_ALL, "ko", "kor_Hang"),
        (NLLB_ALL, "tw", "twi_Latn"),
        (NLLB_ALL, "kr-Arab", "knc_Arab"),
        (NLLB_ALL, "ks-Deva", "kas_Deva"),
        (NLLB_ALL, "fil", "tgl_Latn"),
        (NLLB_ALL, "fre", "fra_Latn"),
        (MBART50, "ar-EG", "ar_AR"),  # mBART-50 does not distinguish dialects
        (MBART50, "de-AT", "de_DE"),
        (M2M100, "nb", "no"),
    ],
)
def test_a_macrolanguage_or_a_region_means_one_of_the_checkpoints_own(own, language, code):
    assert Languages(own).own_code("target_language", language) == code


@pytest.mark.parametrize(
    ("own", "language", "there_is"),
    [
        (NLLB_ALL, "sr-Latn", "knows srp_Cyrl$"),
        (NLLB_ALL, "sh", "knows srp_Cyrl$"),
        (NLLB_ALL, "ar-AE", "knows acm_Arab, acq_Arab"),
        (NLLB_ALL, "uz-Cyrl", "knows uzn_Latn$"),
        (NLLB_ALL, "pa-PK", "knows pan_Guru$"),
        (M2M100, "sr-Latn", "knows sr$"),
        (M2M100, "zh-TW", "knows zh$"),
        (M2M100, "prs", "knows"),
        (M2M100, "nn", "knows"),
        (MBART50, "zh-Hant", "knows zh_CN$"),
        (("pt_PT",), "pt-BR", "knows pt_PT$"),
    ],
)
def test_another_script_or_dialect_is_refused_with_what_there_is(own, language, there_is):
    with pytest.raises(UnknownLanguage, match=there_is):
        Languages(own).own_code("target_language", language)


@pytest.mark.parametrize("code", NLLB_ALL)
def test_every_code_of_nllb_is_found_by_itself_and_by_its_tag(code):
    languages = Languages(NLLB_ALL)
    language, script = code.split("_")
    assert languages.own_code("target_language", code) == code
    assert languages.own_code("target_language", f"{language}-{script}") == code
    found = languages.own_code("target_language", language)
    assert found.split("_")[0] == language
    if sum(each.startswith(language) for each in NLLB_ALL) == 1:
        assert found == code


M2M100_ALL = tuple(M2M100_CODES["m2m100"])
MBART50_ALL = tuple(MBART50_CODES)


def preferred_tags(code):
    """The preferred BCP 47 tags: with and without the macrolanguage, and without the usual
    subtags."""
    tag = code.removesuffix("_XX").replace("_", "-")
    return {langcodes.standardize_tag(tag), langcodes.standardize_tag(tag, macro=True)}


@pytest.mark.parametrize("own", [NLLB_ALL, M2M100_ALL, MBART50_ALL])
def test_every_code_is_found_by_the_tag_that_bcp_47_prefers(own):
    languages = Languages(own)
    # Two codes of one macrolanguage: its tag belongs to the code of the same name.
    same = {"twi_Latn": "aka_Latn"}
    for code in own:
        for tag in preferred_tags(code):
            expected = {code, same.get(code, code)}
            assert languages.own_code("target_language", tag) in expected, tag


@pytest.mark.parametrize("own", [M2M100_ALL, MBART50_ALL])
def test_every_code_is_found_by_its_three_letters_and_by_nllbs(own):
    languages = Languages(own)
    for code in own:
        language = langcodes.Language.get(code.split("_")[0])
        if not language.is_valid():
            continue  # M2M100's `ns`
        assert languages.own_code("target_language", language.to_alpha3()) == code
        script = language.maximize().script
        assert languages.own_code("target_language", f"{language.to_alpha3()}_{script}") == code


@pytest.mark.parametrize(
    ("macrolanguage", "code"),
    [
        ("ar", "arb_Arab"), ("ay", "ayr_Latn"), ("az", "azj_Latn"), ("fa", "pes_Arab"),
        ("ff", "fuv_Latn"), ("ku", "kmr_Latn"), ("lv", "lvs_Latn"), ("mg", "plt_Latn"),
        ("mn", "khk_Cyrl"), ("ms", "zsm_Latn"), ("ne", "npi_Deva"), ("no", "nob_Latn"),
        ("om", "gaz_Latn"), ("or", "ory_Orya"), ("ps", "pbt_Arab"), ("qu", "quy_Latn"),
        ("sq", "als_Latn"), ("sw", "swh_Latn"), ("uz", "uzn_Latn"), ("yi", "ydd_Hebr"),
        ("zh", "zho_Hans"),
    ],
)  # fmt: skip
def test_a_macrolanguage_is_its_usual_member(macrolanguage, code):
    languages = Languages(NLLB_ALL)
    three = langcodes.Language.get(macrolanguage).to_alpha3()
    for tag in (macrolanguage, three, macrolanguage.upper(), code.replace("_", "-")):
        assert languages.own_code("target_language", tag) == code
