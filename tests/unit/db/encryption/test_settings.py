"""Where the keys of encryption at rest come from, and what is refused."""

import base64
from pathlib import Path

import pytest

from db.encryption.key_ring import (
    KeyRing,
    KeysUnusable,
    key_ring,
    new_key,
)
from db.encryption.settings import configured_keys, keys_file
from db.session import Database


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    one, two = new_key("k1"), new_key("k2")
    file = tmp_path / "keys"
    file.write_text(f"# the newest first\n{two}\n\n{one}\n")

    assert key_ring({}) is None
    from_file = key_ring({"TIDEMILL_KEYS_FILE": str(file)})
    assert from_file is not None
    assert (from_file.primary, list(from_file.keys)) == ("k2", ["k2", "k1"])
    assert key_ring({"TIDEMILL_KEYS": f"{two},{one}"}) == from_file
    assert one.partition(":")[2] not in repr(from_file)


@pytest.mark.parametrize(
    ("text_", "words"),
    [
        ("k1", "key 1 of TIDEMILL_KEYS is none"),
        ("k1:c2hvcnQ=", "key 1 of TIDEMILL_KEYS is none"),
        (f"a b:{base64.b64encode(b'x' * 32).decode()}", "key 1 of TIDEMILL_KEYS is none"),
        (
            ",".join(f"k1:{base64.b64encode(each * 32).decode()}" for each in (b"x", b"y")),
            "two keys",
        ),
        ("# nothing", "has no key"),
    ],
)
def test_an_invalid_key_is_named_by_its_line_and_not_shown(text_: str, words: str) -> None:
    with pytest.raises(KeysUnusable, match=words) as raised:
        key_ring({"TIDEMILL_KEYS": text_})
    assert "c2hvcnQ" not in str(raised.value)


def test_a_file_of_keys_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match=r"none cannot be read: No such file"):
        key_ring({"TIDEMILL_KEYS_FILE": str(tmp_path / "none")})
    with pytest.raises(KeysUnusable, match="are both set"):
        key_ring({"TIDEMILL_KEYS_FILE": "x", "TIDEMILL_KEYS": "y"})


def configured(folder: Path, table: str, **environment: str) -> KeyRing | None:
    (folder / "tidemill.toml").write_text(f"[encryption]\n{table}\n")
    return configured_keys(environment, folder)


def test_the_configuration_names_where_the_keys_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configured_keys({}, tmp_path) is None
    (tmp_path / "keys").write_text(f"{new_key('k1')}\n")
    of_file = configured(tmp_path, 'keys_file = "keys"')
    assert of_file is not None
    assert of_file.primary == "k1"
    of_variable = configured(tmp_path, 'keys_variable = "OURS"', OURS=new_key("k2"))
    assert of_variable is not None
    assert of_variable.primary == "k2"

    assert keys_file({}, tmp_path) is None
    configured(tmp_path, 'keys_file = "keys"')
    assert keys_file({}, tmp_path) == tmp_path / "keys"
    assert keys_file({"TIDEMILL_KEYS_FILE": "/x"}, tmp_path) == Path("/x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TIDEMILL_CONFIG", str(tmp_path / "tidemill.toml"))
    configured(tmp_path, 'keys_file = "keys"')
    url = f"sqlite:///{tmp_path}/x.db"
    assert Database(url).keys == of_file
    monkeypatch.setenv("TIDEMILL_KEYS", new_key("k3"))
    first = Database(url).keys
    assert first is not None
    assert first.primary == "k3"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('keys_file = "none"', "cannot be read: No such file"),
        ('keys_variable = "OURS"', "OURS, which is not set"),
        ('keys_variable = "OURS"\nkeys_file = "none"', "has one of keys_file and keys_variable"),
        ("", "has one of keys_file and keys_variable"),
        ('keys = "k1:x"', "encryption.keys is not a setting"),
        ("keys_file = 3", "must be a text"),
    ],
)
def test_a_table_whose_keys_are_not_there_is_refused(
    tmp_path: Path, table: str, words: str
) -> None:
    with pytest.raises(KeysUnusable, match=words):
        configured(tmp_path, table)
