"""Packing: combines neighbouring pieces into parts of similar size, each within a limit.

Pure. The token counts of pieces add up only approximately to that of a part, so the parts are
counted again before they are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.documents.splitting import Boundary

MIN_SHARE, MAX_SHARE = 0.7, 1.15  # of the even share, where a better boundary is looked for


@dataclass(frozen=True, slots=True)
class Piece:
    """end:      the offset after the piece
    boundary: the unit of text that ends there
    """

    end: int
    num_tokens: int
    boundary: Boundary = Boundary.NONE


def pack(pieces: Sequence[Piece], max_tokens: int) -> list[int]:
    """The ends of the parts, each at the end of a piece; the last is the last piece's.

    Before each part the rest is shared out evenly, so that the last is as large as the others. Only
    a piece that exceeds the limit by itself makes a part that does.
    """
    ends: list[int] = []
    num_left = sum(each.num_tokens for each in pieces)
    first = 0
    while first < len(pieces):
        num_pieces, num_tokens = _next_part(pieces, first, num_left, max_tokens)
        first += num_pieces
        num_left -= num_tokens
        ends.append(pieces[first - 1].end)
    return ends


def _next_part(
    pieces: Sequence[Piece], first: int, num_left: int, max_tokens: int
) -> tuple[int, int]:
    """The number of pieces and of tokens of the next part."""
    if num_left <= max_tokens:
        return len(pieces) - first, num_left
    share = num_left / -(-num_left // max_tokens)
    best: tuple[int, int] | None = None
    best_worth: tuple[bool, int, float] | None = None
    num_tokens = 0
    for index in range(first, len(pieces)):
        piece = pieces[index]
        num_tokens += piece.num_tokens
        if num_tokens > max_tokens and best is not None:
            break
        is_near = MIN_SHARE * share <= num_tokens <= MAX_SHARE * share
        worth = (is_near, piece.boundary if is_near else 0, -abs(num_tokens - share))
        if best_worth is None or worth >= best_worth:
            best, best_worth = (index - first + 1, num_tokens), worth
    assert best is not None
    return best
