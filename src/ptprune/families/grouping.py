"""Which tiles of a prompt make an image, told from the text between them. Token ids are compared, never known."""

from __future__ import annotations

from collections.abc import Sequence


def split_at(starts: Sequence[bool]) -> list[range]:
    """Ranges of tiles that begin where ``starts`` is True; the first tile always begins one."""
    begins = [i for i, start in enumerate(starts) if start or i == 0]
    return [range(a, b) for a, b in zip(begins, [*begins[1:], len(starts)], strict=True)]


def runs(gaps: Sequence[Sequence[int]]) -> list[range]:
    """Tiles that follow one another without text make an image."""
    return split_at([len(gap) > 0 for gap in gaps])


def started_by_mark(gaps: Sequence[Sequence[int]]) -> list[range]:
    """Images whose first tile follows a start token, the others something else.

    The token before the prompt's first tile is that start token.
    """
    return split_at([gap[-1:] == gaps[0][-1:] for gap in gaps])


def ended_by_mark(gaps: Sequence[Sequence[int]]) -> list[range]:
    """Images whose last tile, the thumbnail, follows a token of its own, which no other tile follows.

    The token before the prompt's last tile is that token.
    """
    last = [gap[-1:] == gaps[-1][-1:] for gap in gaps]
    return split_at([False, *last[:-1]])
