"""Where an image's visual tokens stand in a prompt, region by region. Knows no model and no score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ptprune.budget import allocate
from ptprune.errors import Refused
from ptprune.selection import padded_rows
from ptprune.upload import upload


@dataclass(frozen=True)
class Region:
    """A tile, a thumbnail or a window of an image.

    Attributes:
        grid: (rows, columns) of its visual tokens, which stand in the prompt row by row.
        is_thumbnail: whether the region is the downsampled whole image.
    """

    grid: tuple[int, int]
    is_thumbnail: bool = False

    @cached_property
    def num_tokens(self) -> int:
        return prod(self.grid)


@dataclass(frozen=True)
class Place:
    """Where a region lies in its picture.

    Attributes:
        row, column: in the grid of tiles or windows; both -1 for the thumbnail.
        box: (left, top, right, bottom) of what it shows, in fractions of the picture's width and height.
    """

    row: int
    column: int
    box: tuple[float, float, float, float]


THUMBNAIL = Place(-1, -1, (0.0, 0.0, 1.0, 1.0))


def even_place(row: int, column: int, rows: int, columns: int) -> Place:
    """The place of one of ``rows`` x ``columns`` tiles of equal size."""
    return Place(row, column, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))


@dataclass(frozen=True, eq=False)
class PartlyEncoded:
    """What of an image was encoded.

    Attributes:
        tokens: bool array [num_unpruned], the image's prunable tokens that have features.
        scores: one a region: how much it needed to be encoded; None where nobody asked.
        borrowed: whether each region has the features of another.
    """

    tokens: np.ndarray
    scores: tuple[float | None, ...]
    borrowed: tuple[bool, ...]

    def own(self, region_of: np.ndarray) -> np.ndarray:
        """Bool array [num_unpruned], the tokens with features of their own; ``region_of``: of all of them."""
        return self.tokens & ~np.array(self.borrowed)[region_of]


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """One image of a prompt: its regions, and where its prunable visual tokens stand in the (padded) batch row.

    Attributes:
        sample: batch row.
        tokens: LongTensor [num_tokens], prompt positions of the image's prunable visual tokens, increasing. If a method
            drops tokens in stages, those that are left.
        regions: in the order of the encoder's rows, as they were before any token was dropped.
        region_of: LongTensor [num_tokens], the index of each token's region.
        places: returns where the regions lie in the picture; called when a report is read.
        host: ``region_of`` as an array on the host; None after tokens were dropped.
        unpruned: the image's prunable visual tokens, where some of them are in none of these regions, or missing in
            them, because they were not encoded.
        encoded: what of the image was encoded, for the report; None: all of it.
        cells: array [num_tokens], where each token is in its region's grid, numbered row by row; None: every region
            has all of its tokens, or some were dropped in stages.
    """

    sample: int
    tokens: Tensor
    regions: tuple[Region, ...]
    region_of: Tensor
    places: Callable[[], Sequence[Place]]
    host: np.ndarray | None = None
    unpruned: int | None = None
    encoded: PartlyEncoded | None = None
    cells: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.num_tokens > self._in_regions or self.num_tokens != len(self.region_of):
            sizes = [region.num_tokens for region in self.regions]
            raise Refused(f"regions of {sizes} tokens do not make an image of {self.num_tokens} tokens")

    @cached_property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @cached_property
    def num_unpruned(self) -> int:
        """The image's prunable visual tokens before any was dropped or left out."""
        return self._in_regions if self.unpruned is None else self.unpruned

    @property
    def _in_regions(self) -> int:
        return sum(region.num_tokens for region in self.regions)

    def members(self) -> Sequence[Tensor]:
        """For each region a LongTensor: the indices of its tokens among the image's, row by row."""
        by_region = self.upload(np.argsort(self.numbers, kind="stable"))
        return by_region.split(self.sizes()) if len(self.regions) > 1 else [by_region]

    def members_on_host(self) -> list[np.ndarray]:
        """``members`` as arrays on the host."""
        return np.split(np.argsort(self.numbers, kind="stable"), np.cumsum(self.sizes())[:-1])

    def slots(self) -> np.ndarray:
        """[num_regions, longest]: each region's tokens as in ``members``; ``num_tokens``, one too many, is padding."""
        members = self.members_on_host()
        return padded_rows(members, [self.num_tokens] * len(members))

    def padded(self, values: Tensor) -> Tensor:
        """Values [num_tokens] region by region: [num_regions, longest], padded with zeros."""
        return F.pad(values, (0, 1))[self.upload(self.slots())]

    def cells_on_host(self) -> np.ndarray:
        """Array [num_tokens]: where each token is in its region's grid, numbered row by row.

        Raises:
            Refused: if tokens were dropped in stages, so that nobody knows.
        """
        if self.cells is not None:
            return self.cells
        if self.num_tokens != self._in_regions:
            raise Refused("tokens were dropped in stages: where those that are left stand in their tiles is not known")
        cells = np.empty(self.num_tokens, np.int64)
        for members in self.members_on_host():
            cells[members] = np.arange(len(members))
        return cells

    @cached_property
    def on_canvas(self) -> tuple[tuple[int, int, int], Tensor | None]:
        """(regions, rows, columns) of a canvas with room for every region's grid, and LongTensor [num_tokens], where
        each token is on it; None if they fill it in their order."""
        grids = np.array([region.grid for region in self.regions])
        rows, columns = (int(most) for most in grids.max(axis=0))
        numbers, cells = self.numbers, self.cells_on_host()
        own = grids[numbers, 1]
        where = (numbers * rows + cells // own) * columns + cells % own
        shape = len(grids), rows, columns
        return shape, None if np.array_equal(where, np.arange(prod(shape))) else self.upload(where)

    @cached_property
    def numbers(self) -> np.ndarray:
        """``region_of`` on the host. It is read from the device only if a method drops tokens in stages."""
        return self.region_of.cpu().numpy() if self.host is None else self.host

    def upload(self, values: np.ndarray) -> Tensor:
        """An array as a tensor on the tokens' device."""
        return upload(values, self.tokens.device)

    def sizes(self) -> list[int]:
        """Tokens of each region. They are read from the device only if a method drops tokens in stages."""
        if self.num_tokens == self._in_regions:
            return [region.num_tokens for region in self.regions]
        return np.bincount(self.numbers, minlength=len(self.regions)).tolist()

    def even_budgets(self, total: int) -> list[int]:
        """Tokens to keep in each region, in proportion to its size, ``total`` in all."""
        sizes = self.sizes()
        return allocate([1.0] * len(sizes), sizes, total)

    @property
    def thumbnail(self) -> int | None:
        """Index of the thumbnail among ``regions``, or None where the image has none."""
        return next((i for i, region in enumerate(self.regions) if region.is_thumbnail), None)
