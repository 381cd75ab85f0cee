"""Storable names: those that a row can have."""


def can_be_kept(name: object) -> bool:
    """Whether any row can have it: no database keeps a NUL or half a character."""
    if not isinstance(name, str):
        return True
    return "\x00" not in name and not any("\ud800" <= each <= "\udfff" for each in name)
