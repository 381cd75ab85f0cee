"""Redaction: shows a URL without its secrets, even if it cannot be parsed.

An invalid address is the most likely to have its password in an odd place, so nothing here relies
on parsing it: known harmless parts are shown, and the rest is `***`.
"""

import re
from urllib.parse import unquote

MASK = "***"
# The values of these parameters are not secret. Any other may be: passwords have many names.
HARMLESS = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "db",
        "dbname",
        "gssencmode",
        "health_check_interval",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "port",
        "protocol",
        "socket_connect_timeout",
        "socket_timeout",
        "ssl_ca_certs",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
        "username",
        "virtual_host",
    }
)
_SECRET = frozenset({"password", "passwd", "pass", "pwd", "sslpassword", "token", "secret"})
_SCHEME = re.compile(
    r"(?:rediss?|valkeys?|redis\+socket|socket|unix|sentinel|memory|amqps?"
    r"|postgres(?:ql)?(?:\+\w+)?|sqlite(?:\+\w+)?|[A-Za-z][\w+.-]*(?=://))(?::/*|/+)",
    re.IGNORECASE,
)
_QUERY = re.compile(r"\?([\w.%-]+=[^&;]*(?:[&;][\w.%-]+=[^&;]*)*)\Z", re.DOTALL)
_KEYWORD = re.compile(r"(\w+)(\s*=\s*)('(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\S*)", re.DOTALL)
_HOST = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[\w.,-]*)(?P<port>:\d{1,5})?(?P<path>/[^?#]*)?", re.DOTALL
)


def masked(address: str) -> str:
    """The address with everything masked that may be secret; never raises."""
    address = address.strip()
    return "".join(c if c.isprintable() else "?" for c in _masked(address))


def _masked(address: str) -> str:
    for quote in "\"'":
        if address.startswith(quote):
            return f"{quote}{_masked(address[1:])}"
    scheme = _SCHEME.match(address)
    if scheme is None:
        return _without_scheme(address)
    begin, rest = scheme.group(), address[scheme.end() :]
    if begin.lower().startswith("sqlite") and "///" in begin:
        # A file has no password, and its path may contain any character.
        before, query = _split_query(rest, known_only=False)
        return begin + before + query
    before, query = _split_query(rest, known_only=True)
    userinfo, at, place = before.rpartition("@")
    if not at:
        return begin + _place(place, begin) + query
    user, colon, _ = userinfo.partition(":")
    named = colon or re.match(r"postgres[a-z+]*://", begin, re.IGNORECASE)
    shown = user if named and re.fullmatch(r"[\w.%+-]*", user) else ""
    secret = f":{MASK}" if colon else "" if shown == userinfo else MASK
    return f"{begin}{shown}{secret}@{_place(place, '')}{query}"


def _split_query(rest: str, *, known_only: bool) -> tuple[str, str]:
    """The address before its parameters, and the parameters with masked values.

    known_only: a password may contain a `?`, so text after an unknown name or before an `@` is not
                taken as a query
    """
    match = _QUERY.search(rest)
    # The pattern finds the last `?` only if no value contains one.
    if match is None:
        before, mark, _ = rest.partition("?")
        return (rest, "") if known_only and "@" in rest else (before, f"?{MASK}" if mark else "")
    pairs = [pair.partition("=") for pair in re.split("[&;]", match.group(1))]
    names = [unquote(name).lower() for name, _, _ in pairs]
    before = rest[: match.start()]
    if known_only and "@" in match.group() and not ({*names} <= HARMLESS | _SECRET):
        return rest, ""
    values = [
        value if name in HARMLESS else MASK
        for name, (_, _, value) in zip(names, pairs, strict=True)
    ]
    shown = "&".join(f"{unquote(pair[0])}={v}" for pair, v in zip(pairs, values, strict=True))
    return before, f"?{shown}"


def _place(place: str, scheme: str) -> str:
    """Host, port and path; masked if they may contain the rest of a password."""
    place, hash_mark, _ = place.partition("#")
    match = _HOST.fullmatch(place)
    end = f"#{MASK}" if hash_mark else ""
    if match is None:
        host, colon, _ = place.partition(":")
        return (f"{host}:{MASK}" if colon and re.fullmatch(r"[\w.-]*", host) else MASK) + end
    is_port = match["port"] is None or (match["host"] and int(match["port"][1:]) < 2**16)
    if scheme and not is_port:
        return f"{match['host']}:{MASK}{match['path'] or ''}{end}"
    return place + end


def _without_scheme(address: str) -> str:
    if re.match(r"\w+\s*=", address):
        return " ".join(
            f"{name}={value if name.lower() in HARMLESS else MASK}"
            for name, _, value in _KEYWORD.findall(address)
        )
    if "@" in address:
        return f"{MASK}@{_place(address.rpartition('@')[2], '')}"
    if address.startswith(("/", "./", "../", "~")):
        return address
    host = re.fullmatch(r"(localhost|[\w-]+(\.[\w-]+)+|\[[0-9a-fA-F:]+\]):\d{1,5}(/\d*)?", address)
    return address if host else MASK
