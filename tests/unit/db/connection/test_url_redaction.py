"""Masking: whatever is written into an address, its secret is not shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.connection.url_redaction import masked

SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "address",
    [
        "redis://:{}@host:6379/0",
        "redis://user:{}@host",
        "redis//:{}@host",
        "redis:/:{}@host/0",
        "redis:{}@host",
        "redis://{}@host/0",
        ":{}@host",
        "user:{}@host:5432/name",
        "{}@host",
        "postgres:{}@host/name",
        "redis://:a@{}@host",
        "redis://:{}@b@host",
        "redis://:a/{}@host",
        "redis://:a#{}@host",
        "redis://:a?{}@host",
        "redis://:a?{}=1@host",
        "redis://:{}?x=1@host",
        "redis://:{}#x@host",
        "redis://:{}/x@host",
        "redis://host?password={}",
        "redis://host/0#{}",
        "redis://:{}/0",
        "redis://:{}",
        "redis://host:{}",
        "redis://user:{}/0",
        "unix:///run/redis.sock?password={}",
        "unix://user:{}@/run/redis.sock",
        "redis+socket:///run/redis.sock?password={}&virtual_host=0",
        "postgresql://user:{}@[::1]:5432/name",
        "postgresql://user:{}",
        "postgresql+psycopg://user:{}@host:notaport/name",
        "postgresql://host/name?password={}",
        "postgresql://host/name?sslmode=require&sslpassword={}",
        "postgresql://host/name?token={}&user=a@b",
        "postgresql://host/name?pass%77ord={}",
        "postgresql://host/name?PASSWORD={}",
        "postgresql://host/name?options=-c%20secret%3D{}",
        "postgresql://u:p@host/name?password=a@{}",
        "postgresql://host/name?{}",
        "host=db user=someone password={}",
        "host=db password = '{}' user=someone",
        "host=db password='a \\' {}' user=someone",
        "host=db password=a@{}",
        "password={}@x host=db",
        "'redis://:{}@host'",
        '"postgresql://user:{}@host/name"',
        "  redis://:{}@host  ",
        "redis://:{}\n@host",
        "sqlite://user:{}@host/name",
        "sqlite:////data/tidemill.db?key={}",
        "mysql://root:{}@host/name",
        "https://user:{}@host/",
        "{}",
    ],
)
def test_a_secret_is_not_shown(address: str) -> None:
    assert SECRET not in masked(address.format(SECRET))


@given(
    st.sampled_from(["redis://:{}@host:1/0", "redis//u:{}@h", "postgresql://u:{}@h/d", "u:{}@h"]),
    st.text(st.sampled_from("/?#@:%&;='\"\\ ab[]"), max_size=12),
)
def test_a_secret_is_not_shown_beside_any_character(address: str, odd: str) -> None:
    for secret in (odd + SECRET, SECRET + odd, f"{odd}{SECRET}{odd}"):
        assert SECRET not in masked(address.format(secret))


@given(st.text())
def test_redaction_never_raises_and_prints_no_control_characters(address: str) -> None:
    assert masked(address).isprintable()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("redis://127.0.0.1:6379/3", "redis://127.0.0.1:6379/3"),
        ("postgresql://someone:pw@host/name", "postgresql://someone:***@host/name"),
        ("postgresql://someone@host/name", "postgresql://someone@host/name"),
        ("postgresql://u:p@[::1]:5432/n", "postgresql://u:***@[::1]:5432/n"),
        ("postgresql:///n?host=/tmp/sock", "postgresql:///n?host=/tmp/sock"),
        ("sqlite:////data/a@b#c/tidemill.db", "sqlite:////data/a@b#c/tidemill.db"),
        ("host=db password=x", "host=db password=***"),
        ("/data/tidemill.db", "/data/tidemill.db"),
        ("localhost:6379", "localhost:6379"),
    ],
)
def test_harmless_parts_of_a_url_are_shown(address: str, shown: str) -> None:
    assert masked(address) == shown
