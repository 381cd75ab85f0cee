"""Finds e-mail addresses, IP addresses, and secrets in URLs.

Each finder searches for a sign that every match has (`@`, `:`, `://`) and then looks around it up
to a fixed distance: a text without the sign is read at the speed of a search.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv6Address

from worker.masking.match import Match

# Letters of scripts with spaces between words. Letters of other scripts (Chinese, Thai) may stand
# next to an address without a space; they belong to it only if it has no other letters.
_LETTERS = r"A-Za-z0-9_\u00c0-\u0dff\u1e00-\u1fff"
AT, AT_IN_URL = re.compile("@"), re.compile("@|%40")
# Punctuation of a local part, without `/=?|`, which often precede an address.
_SIGNS = ".+%'’!#$&*^{}~-"
LOCAL = re.compile(rf"[{_LETTERS}{_SIGNS}]{{1,64}}\Z")
ANY_LOCAL = re.compile(rf"[\w{_SIGNS}]{{1,64}}\Z")
BEFORE_A_LOCAL = "'’!#$&*^{}~"
QUOTED_LOCAL = re.compile(r"\"(?:[^\"\\\n\x00]|\\[^\n\x00]){1,64}\"\Z")
# The last part of a host's name begins with a letter, as no version's does.
_DOMAIN = r"(?:[{0}-]{{1,63}}\.){{1,8}}(?=[^\W\d_])[{0}-]{{2,63}}(?<![-_])"
_LITERAL = r"\[(?:IPv6:)?[0-9A-Fa-f.:]{3,45}\]"
DOMAIN = re.compile(rf"{_DOMAIN.format(_LETTERS)}|{_LITERAL}")
ANY_DOMAIN = re.compile(_DOMAIN.format(r"\w"))
RUN = re.compile(
    # A URL from `://` on, or a query without `://` before it, as in `host/x?token=1`.
    # In JSON a slash may be written `\\/`.
    r"[:?](?:(?<=:)\\?/\\?/|(?<=\?)(?=[\w.%\[\]-]{1,60}=))[^\s<>\"\x00]{1,4000}"
)
SLASHES = re.compile(r":\\?/\\?/")
# A password may contain an unencoded slash. After a port a slash begins the path.
USERINFO = re.compile(
    r"[^/?#\x00]{0,256}@|[^/?#:@\[\x00]{0,64}:(?![0-9]{1,5}[/?#])[^@\x00]{1,256}@"
)
SECRET = re.compile(
    r"[?&;#]"
    # The first parts match anywhere in a parameter's name; the others must be a word of it, since
    # `monkey` is no `key`.
    r"(?:[\w.%\[\]-]{0,40}?(?:token|secret|passw(?:or)?[dt]|passphrase|pwd|signature|credential"
    r"|session|api_?key|access_?key|private_?key|auth_?key|auth_?code)[\w.%\[\]-]{0,40}"
    r"|(?:[\w.%\[\]-]{0,40}(?:[._%\[-]|%5B))?(?:key|sig|sign|hmac|auth|otp|jwt|sid|pass|pw|pin|ticket)"
    r"(?:[._%\]-][\w.%\[\]-]{0,40})?"
    r"|code)"
    r"=(?P<value>[^&;#\s\x00]{1,2000})",
    re.IGNORECASE,
)
# Encoded separators in a URL that is the value of a parameter.
ENCODED = re.compile("%(?:3F|26|3B|23|3D)", re.IGNORECASE)
BEHIND_A_URL = ".,:!?)]}'*`"
IPV4 = re.compile(
    r"[0-9](?<![A-Za-z0-9.][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9]|\.[0-9])"
)
COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX = frozenset("0123456789abcdefABCDEF:")
MAX_IPV6_CHARACTERS = 45


class Emails:
    """Finds e-mail addresses."""

    def find(self, text: str) -> Iterator[Match]:
        end = 0
        for at in (AT_IN_URL if "%40" in text else AT).finditer(text):
            start = _start_of_local(text, end, at.start())
            domain = start is not None and _domain(text, at.end())
            if start is not None and domain:
                end = domain.end()
                yield Match(start, end, "EMAIL")


def _start_of_local(text: str, after: int, at: int) -> int | None:
    window = max(after, at - 66), at
    before = text[at - 1 : at]
    pattern = QUOTED_LOCAL if before == '"' else LOCAL if before < "\u0e00" else ANY_LOCAL
    local = pattern.search(text, *window)
    if local is None:
        return None
    start = local.start()
    while start < at and text[start] in BEFORE_A_LOCAL:
        start += 1
    return start if start < at else None


def _domain(text: str, start: int) -> re.Match[str] | None:
    pattern = DOMAIN if text[start : start + 1] < "\u0e00" else ANY_DOMAIN
    return pattern.match(text, start)


class UrlSecrets:
    """Finds passwords before a host, and the values of parameters such as `token`."""

    def find(self, text: str) -> Iterator[Match]:
        for run in RUN.finditer(text):
            start, end = run.span()
            if text[start] == ":":
                if not text[start - 1 : start].isalnum():
                    continue
                start = SLASHES.match(text, start).end()  # type: ignore[union-attr]  # begins so
                userinfo = USERINFO.match(text, start, end)
                if userinfo is not None and userinfo.end() - 1 > start:
                    yield Match(start, userinfo.end() - 1, "SECRET")
            yield from _secrets(text, start, end)
            if "%3" in text[start:end]:
                # A URL within the URL.
                decoded = ENCODED.sub(_padded, text[start:end])
                for each in _secrets(decoded, 0, len(decoded)):
                    yield Match(start + each.start, start + each.end, each.kind)


def _secrets(text: str, start: int, end: int) -> Iterator[Match]:
    for match in SECRET.finditer(text, start, end):
        value = match["value"].rstrip(BEHIND_A_URL)
        if value:
            yield Match(match.start("value"), match.start("value") + len(value), "SECRET")


def _padded(encoded: re.Match[str]) -> str:
    """The decoded separator, padded to equal length by dashes, which names may contain."""
    sign = chr(int(encoded.group()[1:], 16))
    return f"--{sign}" if sign == "=" else f"{sign}--"


class IpAddresses:
    """Finds IPv4 and IPv6 addresses."""

    def find(self, text: str) -> Iterator[Match]:
        end = 0
        for colons in COLONS.finditer(text):
            if colons.start() >= end:
                start, end = _ipv6_around(text, end, *colons.span())
                if start < end:
                    yield Match(start, end, "IP")
        for match in IPV4.finditer(text):
            if all(int(part) < 256 for part in match.group().split(".")):
                yield Match(*match.span(), "IP")


def _ipv6_around(text: str, after: int, start: int, end: int) -> tuple[int, int]:
    """The range of an address around two colons; empty if there is none."""
    first = max(after, start - MAX_IPV6_CHARACTERS)
    while start > first and text[start - 1] in _HEX:
        start -= 1
    last = min(len(text), end + MAX_IPV6_CHARACTERS)
    while end < last and (text[end] in _HEX or text[end] == "."):
        end += 1
    if text[end : end + 1].isalnum() and text[end].isascii():
        return end, end
    if start > 0 and text[start - 1].isalnum() and text[start - 1].isascii():
        # A word precedes it, as in `IP:2001:db8::1`. After two colons it is a name, as `std::a1`.
        label = text.find(":", start, end)
        if label < 0 or text[label + 1 : label + 2] == ":":
            return end, end
        start = label + 1
    address_end = end
    while address_end > start and text[address_end - 1] in ".:":
        if text[start:address_end].endswith("::"):
            break
        address_end -= 1
    if not is_ipv6(text[start:address_end]):
        return end, end
    return start, address_end


def is_ipv6(written: str) -> bool:
    try:
        IPv6Address(written)
    except ValueError:
        return False
    # Without a digit it may be a name such as `dead::beef`.
    return any(character.isdigit() for character in written)
