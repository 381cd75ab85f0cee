"""The Redis URL: the errors for unusable ones, without their passwords."""

import ssl

import pytest
import redis
from kombu import Connection

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
        ("redis://:hidden@h?ssl_cert_reqs=required", "options of TLS; .* write rediss://"),
        ("redis://:hidden@h?socket_timeout=5", "options of TLS; leave them out"),
        (
            "rediss://:hidden@h?socket_timeout=5",
            "has a parameter, .*; known: ssl_ca_certs, ssl_ca_path",
        ),
        ("rediss://:hidden@h?ssl_cert_reqs=always", "none of required, optional, none"),
        ("rediss://:hidden@h?ssl_cert_reqs=", "none of required, optional, none"),
        ("rediss://:hidden@h?ssl_check_hostname=maybe", "neither true nor false"),
        ("rediss://:hidden@h?ssl_ca_cert=x", "has ssl_ca_cert, .*; known: ssl_ca_certs"),
        ("rediss://:hidden@h?ssl_min_version=TLSv1_2", "has ssl_min_version, .*; known"),
        ("rediss://:hidden@h?sslrootcert=/x.pem", "here it is ssl_ca_certs"),
        ("rediss://:hidden@h?sslmode=verify-full", "here it is ssl_cert_reqs=required"),
        (
            "rediss://:hidden@h?ssl_ca_certs=/not/there.pem",
            r"/not/there.pem, .*\(ssl_ca_certs\), is",
        ),
        (
            "rediss://:hidden@h?ssl_certfile=/not/own.pem",
            r"/not/own.pem, .*\(ssl_certfile\), is no",
        ),
        ("rediss://:hidden@h?ssl_keyfile=", r"an empty path, .*\(ssl_keyfile\), is no file"),
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
        "rediss://h/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "rediss://h/0?ssl_cert_reqs=required&ssl_ca_path=/etc/ssl/certs&ssl_password=p%20w",
        "redis://:pw@[::1]:6379",
    ],
)
def test_a_url_that_can_be_used_is_taken_as_it_is(url: str) -> None:
    assert read_redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "as_read"),
    [
        ("rediss://h", "rediss://h?ssl_cert_reqs=required"),
        ("rediss://:p%2Fw@h/0?", "rediss://:p%2Fw@h/0?ssl_cert_reqs=required"),
        (
            "rediss://h?ssl_check_hostname=True",
            "rediss://h?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", "rediss://h?ssl_cert_reqs=required"),
        ("rediss://h?ssl_cert_reqs=None", "rediss://h?ssl_cert_reqs=none"),
        (
            "rediss://h?ssl_check_hostname=no",
            "rediss://h?ssl_cert_reqs=required&ssl_check_hostname=false",
        ),
        (
            "rediss://h?ssl_check_hostname=1",
            "rediss://h?ssl_cert_reqs=required&ssl_check_hostname=true",
        ),
    ],
)
def test_a_url_of_tls_is_one_to_kombu_and_to_redis_py(url: str, as_read: str) -> None:
    read = read_redis_url(url)
    assert read == as_read
    assert read_redis_url(read) == read
    with redis.Redis.from_url(read) as client:
        theirs = client.connection_pool.connection_kwargs
    ours = Connection(read).info()["ssl"]
    words = {"required": ssl.CERT_REQUIRED, "none": ssl.CERT_NONE}
    assert ours["ssl_cert_reqs"] == words[theirs["ssl_cert_reqs"]]
    assert ours.get("ssl_check_hostname", True) == theirs.get("ssl_check_hostname", True)
