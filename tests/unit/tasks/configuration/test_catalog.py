"""`tidemill.toml`: a mistake is named with its place; a job finds its model."""

from pathlib import Path

import pytest

from tasks.configuration.catalog import Catalog, Model
from tasks.configuration.settings import config_path
from tasks.errors import SettingsError, UnknownLanguagePair, UnknownModel

MODELS = """
[models.reports]
checkpoint = "facebook/bart-large-cnn"
tasks = ["summarize"]

[models.opus]
checkpoint = "opus"
tasks = ["translate"]
languages = ["en>de"]

[models.nllb]
checkpoint = "nllb"
tasks = ["translate", "summarize"]
languages = ["en", "fr", "it"]
"""


def load(folder: Path, text: str) -> Catalog:
    path = folder / "tidemill.toml"
    path.write_text(text)
    return Catalog.load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no models; add a [models.NAME] table"),
        ("[models.a\n", "is not valid TOML: "),
        (
            "[model.a]\n",
            "unknown table model; known: models, worker, prompts, cache, guards",
        ),
        ("[models]\na = 5\n", "models.a is not a table; write [models.a]"),
        ('[models.a]\ntasks = ["chat"]\n', "models.a.checkpoint Field required"),
        ('[models.a]\ncheckpoint = "x"\ntasks = []\n', "models.a.tasks "),
        (
            '[models.a]\ncheckpoint = "x"\ntasks = ["sing"]\n',
            "models.a.tasks.0 must be 'summarize', ",
        ),
        (
            '[models.a]\ncheckpoint = "x"\ntasks = ["chat"]\nreplica = 2\n',
            "models.a.replica is not a setting; known: ",
        ),
        ('[models.a]\ncheckpoint = "x"\ntasks = ["chat"]\nreplicas = 0\n', "models.a.replicas "),
        (
            '[models.a]\ncheckpoint = "x"\ntasks = ["chat"]\ndtype = "int4"\n',
            "models.a.dtype must be ",
        ),
        ('[models."a b"]\ncheckpoint = "x"\ntasks = ["chat"]\n', "models.a b.alias "),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_setting(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(tmp_path, text)
    assert str(tmp_path / "tidemill.toml") in str(raised.value)
    assert says in str(raised.value)


def test_a_missing_configuration_is_named_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"there is no .*tidemill.toml; .*(?s:.*)TIDEMILL_CONFIG"
    ):
        config_path({}, tmp_path)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        Catalog.load(tmp_path / "tidemill.toml")


@pytest.mark.parametrize(
    ("task", "alias", "pair", "model"),
    [
        ("summarize", None, (None, None), "reports"),
        ("summarize", "nllb", (None, None), "nllb"),
        ("translate", None, ("en", "de"), "opus"),
        ("translate", None, ("fr", "it"), "nllb"),
        ("translate", "nllb", ("en", "fr"), "nllb"),
    ],
)
def test_a_job_goes_to_the_model_it_names_or_the_first_that_can(
    tmp_path: Path, task: str, alias: str | None, pair: tuple[str | None, str | None], model: str
) -> None:
    assert load(tmp_path, MODELS).route(task, alias, *pair).alias == model


@pytest.mark.parametrize(
    ("task", "alias", "says"),
    [
        ("summarize", "none", "there is no model 'none'; known models: reports, opus, nllb"),
        ("summarize", "opus", "the model 'opus' does not summarize; known models: reports, nllb"),
        ("chat", None, "no model does the task 'chat'; known models: reports, opus, nllb"),
    ],
)
def test_an_unknown_model_is_refused_with_the_known_ones(
    tmp_path: Path, task: str, alias: str | None, says: str
) -> None:
    with pytest.raises(UnknownModel) as raised:
        load(tmp_path, MODELS).route(task, alias, None, None)
    assert str(raised.value) == says
    assert raised.value.code == "unknown_model"


def test_an_unknown_pair_of_languages_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    catalog = load(tmp_path, MODELS)
    with pytest.raises(UnknownLanguagePair) as raised:
        catalog.route("translate", None, "de", "en")
    assert str(raised.value) == (
        "no model translates from 'de' to 'en'; "
        "known: en>de, en>fr, en>it, fr>en, fr>it, it>en, it>fr"
    )
    with pytest.raises(UnknownLanguagePair, match=r"known: en>de$"):
        catalog.route("translate", "opus", "en", "fr")


def test_a_checkpoint_beside_the_file_is_a_folder_and_any_other_a_name(tmp_path: Path) -> None:
    (tmp_path / "opus").mkdir()
    models = load(tmp_path, MODELS).models
    assert models["opus"].checkpoint == str(tmp_path / "opus")
    assert models["reports"].checkpoint == "facebook/bart-large-cnn"
    assert not any(model.trust_remote_code for model in models.values())


@pytest.mark.parametrize(
    ("languages", "target", "takes"),
    [
        ([], "fr", True),
        (["en>fr"], "fr", True),
        (["en>fr"], "de", False),
        (["en", "fr"], "fr", True),
        (["fr"], "fr", False),
    ],
)
def test_a_job_with_an_undetected_source_goes_to_a_model_of_its_target(
    languages: list[str], target: str, takes: bool
) -> None:
    model = Model(alias="one", checkpoint="x", tasks=("translate",), languages=tuple(languages))
    assert model.translates("auto", target) is takes


PROMPTED = """
[prompts]
summarize_style = "As {style}."
summarize_focus = "See to {focus}."

[models.one]
checkpoint = "fake"
tasks = ["summarize"]

[models.one.prompts]
summarize_style = "Like {style}."

[models.two]
checkpoint = "fake"
tasks = ["summarize"]
"""


def test_prompts_are_every_model_s_unless_it_has_its_own(tmp_path: Path) -> None:
    config = tmp_path / "tidemill.toml"
    config.write_text(PROMPTED)
    models = Catalog.load(config).models
    assert models["one"].prompts == {
        "summarize_style": "Like {style}.",
        "summarize_focus": "See to {focus}.",
    }
    assert models["two"].prompts["summarize_style"] == "As {style}."


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('sumarize = "{text}"', "sumarize is not one of summarize, "),
        ('summarize = "no text"', r"summarize has no \{text\}"),
        ('summarize = "{text} {style}"', r"cannot be filled in; it may hold \{text\}, \{options\}"),
        ('summarize_style = "{"', "summarize_style cannot be filled in"),
        ("summarize = 7", "prompts"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_with_its_name(
    tmp_path: Path, line: str, says: str
) -> None:
    config = tmp_path / "tidemill.toml"
    config.write_text(f"[prompts]\n{line}\n[models.one]\ncheckpoint = 'x'\ntasks = ['summarize']\n")
    with pytest.raises(SettingsError, match=says):
        Catalog.load(config)


PIVOTS = """
[models.german]
checkpoint = "a"
tasks = ["translate"]
languages = ["de>it", "de>en"]

[models.many]
checkpoint = "b"
tasks = ["translate"]
languages = ["it", "es", "eng_Latn"]

[models.french]
checkpoint = "c"
tasks = ["translate"]
languages = ["en>fr", "it>fr"]
"""


@pytest.mark.parametrize(
    ("source", "target", "way"),
    [
        # By way of English where there is a choice, and by each model's own codes.
        ("de", "fr", ["german de en", "french en fr"]),
        ("de", "es", ["german de en", "many eng_Latn es"]),
        ("es", "fr", ["many es eng_Latn", "french en fr"]),
        ("de-AT", "fra_Latn", ["german de-AT en", "french en fra_Latn"]),
        # Done by one.
        ("de", "it", []),
        ("deu", "it-IT", []),
        ("it", "fr", []),
        # By none.
        ("fr", "de", None),
        ("de", "de", None),
        ("fr", "fr", None),
        ("de", "xx", None),
        ("auto", "de", None),
    ],
)
def test_a_pair_that_no_model_has_goes_by_way_of_a_third_language(
    tmp_path: Path, source: str, target: str, way: list[str] | None
) -> None:
    catalog = load(tmp_path, PIVOTS)
    if way is None:
        with pytest.raises(UnknownLanguagePair, match="known: de>it, de>en, it>es, it>eng_Latn"):
            catalog.route("translate", None, source, target)
        assert catalog.legs("translate", None, source, target) == ()
        return
    legs = catalog.legs("translate", None, source, target)
    assert [f"{each.model.alias} {each.source} {each.target}" for each in legs] == way
    if way:
        assert catalog.route("translate", None, source, target) is legs[0].model


def test_a_named_model_gets_no_pivot_route(tmp_path: Path) -> None:
    catalog = load(tmp_path, PIVOTS)
    with pytest.raises(UnknownLanguagePair):
        catalog.route("translate", "german", "de", "fr")
    assert catalog.legs("translate", "german", "de", "fr") == ()


@pytest.mark.parametrize(
    ("languages", "source", "target", "takes"),
    [
        (("en>fr",), "eng_Latn", "fr-CA", True),
        (("eng_Latn", "pbt_Arab"), "en", "ps", True),
        (("en_XX>ar_AR",), "en-GB", "ar-EG", True),
        (("eng_Latn", "arb_Arab", "arz_Arab"), "en", "ar-EG", True),
        (("en>zh",), "en", "zh-TW", False),
        (("en>pt_PT",), "en", "pt-BR", False),
        (("en>fr",), "und", "fr", True),
        (("en", "fr"), "en-US", "en-GB", False),
    ],
)
def test_codes_that_mean_a_models_languages_are_taken(
    languages: tuple[str, ...], source: str, target: str, takes: bool
) -> None:
    model = Model(alias="one", checkpoint="x", tasks=("translate",), languages=languages)
    assert model.translates(source, target) is takes
