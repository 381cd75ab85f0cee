import re
from datetime import date
from pathlib import Path

import pytest
import yaml

from cli.errors import SourceUnusable
from cli.ingest.nightly_config import NightlyConfig
from tasks.errors import SettingsError

DAY = date(2026, 1, 31)
SINGLE = """
task = "summarize"
run_key = "nightly-{date}"
[source]
path = "{date}.jsonl"
[params]
max_new_tokens = 60
[fields]
text = "body"
[metadata]
day = "{date}"
"""
SEVERAL = """
run_key = "demo-{date}"
batch = "demo"
tenant = "us"
metadata = { origin = "examples" }
[[parts]]
task = "summarize"
source = { path = "a.jsonl" }
[[parts]]
task = "chat"
source = { path = "b.csv" }
metadata = { origin = "elsewhere" }
"""


def night(folder: Path, text: str) -> NightlyConfig:
    path = folder / "nightly.toml"
    path.write_text(text)
    return NightlyConfig.load(path)


def test_the_date_replaces_its_placeholder_everywhere(tmp_path: Path) -> None:
    (tmp_path / "2026-01-31.jsonl").touch()
    found = night(tmp_path, SINGLE)

    [part] = found.parts_of(tmp_path, DAY)

    assert found.run_key_of(DAY) == found.batch_of(DAY) == "nightly-2026-01-31"
    assert part.source.name == str(tmp_path / "2026-01-31.jsonl")
    assert part.columns == {"text": "body"}
    assert part.defaults == {
        "tenant": "default",
        "max_new_tokens": 60,
        "metadata": {"day": "2026-01-31"},
    }
    assert part.tag == ""


def test_several_parts_share_a_batch_and_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.csv").touch()
    found = night(tmp_path, SEVERAL)

    summaries, chats = found.parts_of(tmp_path, DAY)

    assert found.batch_of(DAY) == "demo"
    assert (summaries.tag, chats.tag) == ("1", "2")
    assert (summaries.contract.task, chats.contract.task) == ("summarize", "chat")
    assert summaries.defaults == {"tenant": "us", "metadata": {"origin": "examples"}}
    assert chats.defaults["metadata"] == {"origin": "elsewhere"}


def test_a_query_takes_its_url_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        'task = "chat"\nrun_key = "r"\n'
        '[source]\nurl_env = "DOCUMENTS_URL"\nquery = "SELECT \'{date}\'"'
    )
    found = night(tmp_path, text)

    with pytest.raises(SettingsError, match="DOCUMENTS_URL, which is not set"):
        found.parts_of(tmp_path, DAY)
    monkeypatch.setenv("DOCUMENTS_URL", "postgresql://me:secret@host/name")
    [part] = found.parts_of(tmp_path, DAY)

    assert part.source.name == "the query on postgresql://me:***@host/name"


def test_an_unproved_read_only_database_needs_the_configurations_consent(
    tmp_path: Path,
) -> None:
    text = (
        'task = "chat"\nrun_key = "r"\n'
        '[source]\nurl = "mysql://reader@127.0.0.1:1/name"\nquery = "SELECT 1"\n'
    )

    for more, sentence in (("", "of mysql it is not known"), ("read_only_user = true", "driver")):
        [part] = night(tmp_path, text + more).parts_of(tmp_path, DAY)
        with pytest.raises(SourceUnusable, match=sentence):
            list(part.source.rows(lambda columns: None))


def test_a_query_that_is_no_select_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    text = (
        'task = "chat"\nrun_key = "r"\n'
        '[source]\nurl = "sqlite:///documents.db"\nquery = "DROP TABLE documents"\n'
    )

    with pytest.raises(SourceUnusable, match="begins with DROP"):
        night(tmp_path, text).parts_of(tmp_path, DAY)


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnusable, match=r"2026-01-31\.jsonl"):
        night(tmp_path, SINGLE).parts_of(tmp_path, DAY)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("task = ", "is not valid TOML"),
        ('task = "summarize"', "run_key is missing"),
        ('run_key = "r"', "task and source are needed"),
        ('run_key = "r"\ntask = "dance"\nsource = { path = "a" }', "task: must be 'summarize'"),
        ('run_key = "r"\nspeed = 3', "speed is not a setting"),
        ('run_key = "r"\ntask = "chat"\nsource = { pth = "a" }', "source.pth is not a setting"),
        ('run_key = "r"\ntask = "chat"\nsource = {}', "needs a path, or a url and a query"),
        ('run_key = "r"\ntask = "chat"\nsource = { query = "q" }', "needs a url, or a url_env"),
        (
            'run_key = "r"\ntask = "chat"\nsource = { path = "a", url = "b" }',
            "has a path and a url",
        ),
        (
            'run_key = "r"\ntask = "chat"\nsource = { path = "a", read_only_user = true }',
            "read_only_user beside a path",
        ),
        (
            'run_key = "r"\ntask = "chat"\n'
            'source = { url = "b", query = "SELECT 1", encoding = "cp1252" }',
            "encoding beside a query",
        ),
        (SEVERAL + "[params]\nseed = 1", "parts stand beside"),
    ],
)
def test_a_faulty_configuration_is_refused_with_the_place(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        night(tmp_path, text)


def test_an_unknown_time_zone_is_refused(tmp_path: Path) -> None:
    found = night(tmp_path, 'timezone = "Mars/Olympus"' + SINGLE)

    with pytest.raises(SettingsError, match="Mars/Olympus"):
        found.today()


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml cannot be read"):
        NightlyConfig.load(tmp_path / "none.toml")


# --- docs/nightly.md -----------------------------------------------------------------------------

PAGE = (Path(__file__).parents[4] / "docs" / "nightly.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_configuration_on_the_page_is_one(tmp_path: Path) -> None:
    whole = 'task = "summarize"\nrun_key = "nightly-{date}"\n'
    configurations = blocks("toml")
    assert len(configurations) == 4

    for text in configurations:
        found = night(tmp_path, text if "run_key" in text else whole + text)
        assert found.run_key_of(DAY) == "nightly-2026-01-31"


def test_every_setting_on_the_page_is_one_and_none_is_left_out() -> None:
    tabled = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))

    tables = {"task", "source", "params", "fields", "metadata", "parts"}
    assert tabled == set(NightlyConfig.model_fields) - tables


def test_the_cron_job_on_the_page_is_kubernetes_s() -> None:
    [text] = blocks("yaml")
    job = yaml.safe_load(text)

    assert job["kind"] == "CronJob"
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["tidemill", "nightly"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    volumes = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert mounts == {volume["name"] for volume in volumes}
