"""Redis's URL: the sentence for one that cannot be used, without its password."""

import pytest

from tasks.configuration.redis_url import read_redis_url
from tasks.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("redis://:hidden@h ", "quotes or spaces around it"),
        ("'redis://:hidden@h'", "quotes or spaces around it"),
        ("redis://:hid den@h", "a space or unprintable character"),
        ("redis//:hidden@h", "no scheme"),
        ("h:6379", "no scheme"),
        ("http://:hidden@h", "none of redis://"),
        ("unix:///run/redis.sock?password=hidden", "none of redis://"),
        ("redis://", "names no host"),
        ("redis://:hidden@:6379/0", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:hidden/0", "names no host|no usable port"),
        ("redis://:hidden@h:notaport/0", "no usable port"),
        ("redis://:hidden@h:0/0", "no usable port"),
        ("redis://:hidden@h:65536/0", "no usable port"),
        ("redis://h:6379/x", "no usable database"),
        ("redis://h:6379/-1", "no usable database"),
        ("redis://:hid@den@h", "is ambiguous"),
        ("redis://:hid/den@h", "is ambiguous"),
        ("redis://:hid?den@h", "is ambiguous"),
        ("redis://:hid#den@h", "is ambiguous"),
        ("redis://:hid:den@h", "is ambiguous"),
        ("redis://h?password=hidden", "password among its parameters"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_a_sentence(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        read_redis_url(url)
    assert "hid" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://localhost:6379/0",
        "rediss://user:p%40w@h:6380/15?ssl_cert_reqs=required",
        "redis://:pw@[::1]:6379",
    ],
)
def test_a_url_that_can_be_used_is_taken_as_it_is(url: str) -> None:
    assert read_redis_url(url) == url
