"""Groups a prompt's tiles into images by the text between them. Token ids are only compared, never looked up."""

from __future__ import annotations

from collections.abc import Sequence


def split_at(starts: Sequence[bool]) -> list[range]:
    """Ranges of tiles. One begins at the first tile and wherever ``starts`` is True."""
    begins = [i for i, start in enumerate(starts) if start or i == 0]
    return [range(a, b) for a, b in zip(begins, [*begins[1:], len(starts)], strict=True)]


def runs(gaps: Sequence[Sequence[int]]) -> list[range]:
    """An image is a run of tiles without text between them."""
    return split_at([len(gap) > 0 for gap in gaps])


def started_by_mark(gaps: Sequence[Sequence[int]]) -> list[range]:
    """An image begins at every tile that follows the start token, which is the token before the prompt's first tile."""
    return split_at([gap[-1:] == gaps[0][-1:] for gap in gaps])


def ended_by_mark(gaps: Sequence[Sequence[int]]) -> list[range]:
    """An image ends with a thumbnail, which follows a token of its own: the one before the prompt's last tile."""
    last = [gap[-1:] == gaps[-1][-1:] for gap in gaps]
    return split_at([False, *last[:-1]])
