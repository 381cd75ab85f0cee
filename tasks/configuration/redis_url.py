"""The URL of Redis: parsed once; errors show no password."""

import re
from urllib.parse import parse_qsl, quote, urlencode

from db.connection.url_redaction import masked
from tasks.configuration.tls_options import CHECKED, tls_value
from tasks.errors import SettingsError

LOOKS_LIKE = "it looks like redis://:password@host:6379/0"
ENCODE = "write / ? # @ : and % of a password as %2F %3F %23 %40 %3A and %25"
MEMORY = "memory"  # kombu's in-memory transport, within one process
# Allowed only in their own places of the URL: kombu fails on them in the query, redis-py does not.
NOT_PARAMETERS = {"host", "port", "db", "username", "password", "path"}


def read_redis_url(text: str) -> str:
    """The URL if it can be used; raises SettingsError.

    It is unchanged except for TLS options, which are rewritten so that kombu and redis-py agree.
    """
    if not text.strip():
        raise SettingsError(f"the Redis URL is empty; {LOOKS_LIKE}")
    subject = f"the Redis URL {masked(text)}"
    if text != text.strip() or text[0] in "\"'" or text[-1] in "\"'":
        raise SettingsError(f"{subject} has quotes or spaces around it; take them away")
    if not all(c.isprintable() and c != " " for c in text):
        raise SettingsError(f"{subject} has a space or unprintable character in it; {ENCODE}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise SettingsError(f"{subject} has no scheme; {LOOKS_LIKE}")
    if scheme == MEMORY:
        return text
    if scheme not in ("redis", "rediss"):
        hint = " over TCP, not by a socket's path" if scheme in ("unix", "redis+socket") else ""
        raise SettingsError(f"{subject} is none of redis:// and rediss://{hint}; {LOOKS_LIKE}")
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    userinfo, _, place = authority.rpartition("@")
    if "#" in rest or "@" in path or "@" in query or "@" in userinfo or userinfo.count(":") > 1:
        raise SettingsError(f"{subject} is ambiguous; {ENCODE}")
    _check_place(subject, place)
    if not re.fullmatch(r"\d*", path):
        raise SettingsError(f"{subject} has no usable database: it is a number, as in host:6379/0")
    parameters = parse_qsl(query, keep_blank_values=True)
    if wrong := sorted({name for name, _ in parameters} & NOT_PARAMETERS):
        raise SettingsError(
            f"{subject} has {', '.join(wrong)} among its parameters, where it is not looked for; "
            f"{LOOKS_LIKE}"
        )
    if parameters and scheme == "redis":
        raise SettingsError(
            f"{subject} has parameters, which only rediss:// takes: options of TLS; "
            "leave them out, or write rediss:// to speak TLS"
        )
    if scheme == "redis":
        return text
    options = {name: tls_value(subject, name, value) for name, value in parameters}
    # By default kombu checks no certificate.
    return f"rediss://{before}?{urlencode({**CHECKED, **options}, quote_via=quote, safe='/')}"


def _check_place(subject: str, place: str) -> None:
    match = re.fullmatch(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(?::(?P<port>.*))?", place)
    if match is None or not match["host"]:
        raise SettingsError(f"{subject} names no host; {LOOKS_LIKE}")
    port = match["port"]
    if port is not None and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise SettingsError(
            f"{subject} has no usable port: it is a number from 1 to 65535, after the host; "
            f"{ENCODE}"
        )
