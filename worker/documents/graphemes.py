"""Graphemes: where a text may be cut without splitting a user-perceived character."""

import unicodedata

ZERO_WIDTH_JOINER = "\u200d"
MAX_LOOK_BACK = 4096  # an even number of characters, enough for any run of flags


def safe_cut(text: str, start: int, end: int) -> int:
    """The last place in (start, end] between two graphemes; `end` if there is none.

    A grapheme that is too long (a letter under a thousand accents) is cut: a part must end.
    """
    at = end
    while at > start + 1 and not is_between_graphemes(text, at):
        at -= 1
    return at if is_between_graphemes(text, at) else end


def is_between_graphemes(text: str, at: int) -> bool:
    """Whether a user-perceived character ends here and another begins.

    It is simpler than Unicode's rules and stricter: it may say no where they say yes.
    """
    if at <= 0 or at >= len(text):
        return True
    before, after = text[at - 1], text[at]
    if before == "\r" and after == "\n":
        return False
    if _extends(after) or before == ZERO_WIDTH_JOINER:
        return False
    if _is_vowel_or_final(after) and _is_korean(before):
        return False
    if _is_lead(after) and _is_lead(before):
        return False
    return not (_is_flag_half(after) and _num_flag_halves(text, at) % 2)


def _extends(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Mn", "Me", "Mc")
        or character == ZERO_WIDTH_JOINER
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # the colours of skin
        or "\U000e0020" <= character <= "\U000e007f"  # the tags of a flag
        or character in "\u0e33\u0eb3\uff9e\uff9f"  # Thai and Lao AM, half-width voice marks
    )


def _is_lead(character: str) -> bool:
    """Whether it is a consonant that begins a Korean syllable."""
    return "\u1100" <= character <= "\u115f" or "\ua960" <= character <= "\ua97c"


def _is_vowel_or_final(character: str) -> bool:
    """Whether it is a part of a Korean syllable that does not begin one."""
    return "\u1160" <= character <= "\u11ff" or "\ud7b0" <= character <= "\ud7fb"


def _is_korean(character: str) -> bool:
    return (
        _is_lead(character)
        or _is_vowel_or_final(character)
        or "\uac00" <= character <= "\ud7a3"  # a whole syllable
    )


def _num_flag_halves(text: str, at: int) -> int:
    """The number of regional indicators before a place: two together make a flag."""
    num = 0
    while num < min(at, MAX_LOOK_BACK) and _is_flag_half(text[at - num - 1]):
        num += 1
    return num


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
