"""Storable names: names that a row can have."""


def can_be_kept(name: object) -> bool:
    """Whether a row can have this name: no database stores NUL or a lone surrogate."""
    if not isinstance(name, str):
        return True
    return "\x00" not in name and not any("\ud800" <= each <= "\udfff" for each in name)
