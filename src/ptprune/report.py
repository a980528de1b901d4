"""Reports what a pruned prefill kept, in numbers that can be printed, drawn or stored as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ptprune.layout import ImageLayout
from ptprune.selection import Selection


@dataclass(frozen=True)
class RegionReport:
    """One tile, thumbnail or window.

    Attributes:
        row, column: its place in the grid of tiles or windows; both are -1 for the thumbnail.
        is_thumbnail: whether it is the downsampled whole image.
        start, stop: the range that its tokens span among the image's prunable visual tokens. In families that
            interleave neighbouring tiles row by row (LLaVA), ranges overlap; ``indices`` says which tokens it has.
        indices: its tokens among the image's prunable visual tokens, increasing, row by row of its ``grid``.
        grid: (rows, columns) of its tokens.
        box: (left, top, right, bottom) of the part of the picture that it shows, as fractions of width and height.
        budget: how many of its tokens were kept.
        saliency: the region level's score; None if the method or the image (a single tile) has no region stage.
        encoded: how many of its tokens went through the whole vision encoder; 0 for a tile that was left out,
            also where it has the features of another one.
        tile_score: how much it needed to be encoded, see ``TILE_SCORES``; None if nobody asked.
    """

    row: int
    column: int
    is_thumbnail: bool
    start: int
    stop: int
    indices: list[int]
    grid: tuple[int, int]
    box: tuple[float, float, float, float]
    budget: int
    saliency: float | None
    encoded: int
    tile_score: float | None = None


@dataclass(frozen=True, eq=False)
class ImageReport:
    """One image of the batch.

    Attributes:
        sample: batch row.
        num_tokens: prunable visual tokens before pruning.
        kept: LongTensor (CPU), sorted, the indices 0..num_tokens-1 of the kept tokens in prompt order.
        regions: tiles and thumbnail in prompt order.
        encoded: LongTensor (CPU), sorted, the indices of the tokens that went through the whole vision encoder.
        scores: "token", "instruction", "fused" -> FloatTensor [num_tokens] (CPU), as far as the method computed them;
            0 for tokens that were not encoded. Of the first cut, if tokens are dropped before several layers.
        earlier: if they are, what each cut but the last one left, as ``kept``.
    """

    sample: int
    num_tokens: int
    kept: Tensor
    regions: list[RegionReport]
    scores: dict[str, Tensor]
    encoded: Tensor
    earlier: Sequence[Tensor] = ()

    @property
    def encoded_tiles(self) -> int:
        """How many of the regions were encoded, the thumbnail included."""
        return sum(region.encoded > 0 for region in self.regions)

    @property
    def encoded_tokens(self) -> int:
        """How many of the tokens went through the whole vision encoder."""
        return len(self.encoded)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the tile grid."""
        tiles = [region for region in self.regions if not region.is_thumbnail]
        return max(tile.row for tile in tiles) + 1, max(tile.column for tile in tiles) + 1


@dataclass(frozen=True, eq=False)
class PruningReport:
    """One pruned prefill.

    Attributes:
        images: in prompt order over the whole batch.
        kept_mask: BoolTensor [batch, prompt length] (CPU), True for every prompt position that the layers behind the
            last cut saw. Text counts, padding does not.
        sequence_length: (before, after) for each batch row, without padding.
        earlier_masks: as ``kept_mask``, for each cut but the last.
    """

    images: list[ImageReport]
    kept_mask: Tensor
    sequence_length: list[tuple[int, int]]
    earlier_masks: Sequence[Tensor] = ()

    @property
    def visual_tokens(self) -> tuple[int, int]:
        """(before, after) over the whole batch."""
        return sum(image.num_tokens for image in self.images), sum(len(image.kept) for image in self.images)

    @property
    def encoded_tiles(self) -> tuple[int, int]:
        """(all tiles and thumbnails, those of them that were encoded) over the whole batch."""
        return sum(len(image.regions) for image in self.images), sum(image.encoded_tiles for image in self.images)

    @property
    def encoded_tokens(self) -> tuple[int, int]:
        """(all visual tokens, those that went through the whole vision encoder) over the whole batch."""
        return self.visual_tokens[0], sum(image.encoded_tokens for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "images": [
                {
                    "sample": image.sample,
                    "num_tokens": image.num_tokens,
                    "kept": image.kept.tolist(),
                    "earlier": [kept.tolist() for kept in image.earlier],
                    "encoded": image.encoded.tolist(),
                    "regions": [vars(region).copy() for region in image.regions],
                    "scores": {name: score.tolist() for name, score in image.scores.items()},
                }
                for image in self.images
            ],
            "kept_mask": self.kept_mask.tolist(),
            "sequence_length": [list(pair) for pair in self.sequence_length],
            "visual_tokens": list(self.visual_tokens),
            "encoded_tiles": list(self.encoded_tiles),
            "encoded_tokens": list(self.encoded_tokens),
        }

    def __str__(self) -> str:
        before, after = self.visual_tokens
        regions = sum(len(image.regions) for image in self.images)
        old = max((pair[0] for pair in self.sequence_length), default=0)
        new = max((pair[1] for pair in self.sequence_length), default=0)
        saved = round(100 * (1 - new / old)) if old else 0
        between = zip(*(image.earlier for image in self.images), strict=True)
        counts = [before, *(sum(map(len, kept)) for kept in between), after]
        text = f"{' -> '.join(map(str, counts))} visual tokens, {regions} regions, KV cache -{saved}%"
        tiles, tokens = self.encoded_tiles[1], self.encoded_tokens[1]
        if tiles < regions:
            text += f", {tiles} of {regions} tiles encoded"
        if tokens < before:
            text += f", {tokens} of {before} tokens encoded"
            if after == tokens:  # K was capped, or is just that
                text += ", all of these kept"
        return text


class ReportLog(Sequence[PruningReport]):
    """The reports of several prefills in order. Each is written when first read, not while the model waits."""

    def __init__(self) -> None:
        self._writers: list[Callable[[], PruningReport]] = []

    def add(self, write: Callable[[], PruningReport]) -> None:
        """Add a prefill; ``write`` is called once at most."""
        self._writers.append(_Once(write))

    def __len__(self) -> int:
        return len(self._writers)

    @overload
    def __getitem__(self, index: int) -> PruningReport: ...

    @overload
    def __getitem__(self, index: slice) -> list[PruningReport]: ...

    def __getitem__(self, index: int | slice) -> PruningReport | list[PruningReport]:
        if isinstance(index, slice):
            return [write() for write in self._writers[index]]
        return self._writers[index]()


class _Once:
    """Calls ``write`` once, and lets go of it and of what it holds."""

    def __init__(self, write: Callable[[], PruningReport]) -> None:
        self._write: Callable[[], PruningReport] | None = write
        self._report: PruningReport | None = None

    def __call__(self) -> PruningReport:
        if (write := self._write) is not None:
            self._report = write()
            self._write = None
        assert self._report is not None
        return self._report


def write_report(
    layouts: Sequence[ImageLayout],
    selections: Sequence[Selection],
    valid: np.ndarray,
    earlier: Sequence[Sequence[Tensor]] | None = None,
) -> PruningReport:
    """The report of a prefill.

    Args:
        selections: what stays in the end.
        valid: bool array [batch, prompt length], the columns that are not padding.
        earlier: for each image what each cut but the last left, as ``Selection.kept``; None: there was one cut.
    """
    real, earlier = torch.from_numpy(valid), [()] * len(layouts) if earlier is None else earlier
    images = [_write_image(*each) for each in zip(layouts, selections, earlier, strict=True)]
    *before_last, kept_mask = (
        (_mask(real, layouts, kept) for kept in zip(*((*each.earlier, each.kept) for each in images), strict=True))
        if images
        else (real.clone(),)
    )
    before, after = real.sum(dim=1).tolist(), kept_mask.sum(dim=1).tolist()
    return PruningReport(images, kept_mask, list(zip(before, after, strict=True)), before_last)


def _mask(real: Tensor, layouts: Sequence[ImageLayout], kept: Sequence[Tensor]) -> Tensor:
    """BoolTensor [batch, prompt length]: everything real but the images' tokens that are not kept."""
    mask = real.clone()
    for layout, stays in zip(layouts, kept, strict=True):
        tokens = layout.tokens.cpu()
        mask[layout.sample, tokens] = False
        mask[layout.sample, tokens[stays]] = True
    return mask


def _write_image(layout: ImageLayout, selection: Selection, earlier: Sequence[Tensor]) -> ImageReport:
    kept, region_of = selection.kept.cpu(), layout.region_of.cpu()
    kept_in = region_of[kept].bincount(minlength=len(layout.regions)).tolist()
    saliency = selection.saliency or [None] * len(layout.regions)
    partly = layout.encoded
    own = np.ones(layout.num_tokens, bool) if partly is None else partly.own(region_of.numpy())
    made = np.bincount(region_of.numpy()[own], minlength=len(layout.regions)).tolist()
    asked = [None] * len(layout.regions) if partly is None else partly.scores
    regions = []
    for number, (region, place) in enumerate(zip(layout.regions, layout.places(), strict=True)):
        indices = (region_of == number).nonzero()[:, 0].tolist()
        regions.append(
            RegionReport(
                row=place.row,
                column=place.column,
                is_thumbnail=region.is_thumbnail,
                start=indices[0],
                stop=indices[-1] + 1,
                indices=indices,
                grid=region.grid,
                box=place.box,
                budget=kept_in[number],
                saliency=saliency[number],
                encoded=made[number],
                tile_score=asked[number],
            )
        )
    scores = {name: score.float().cpu() for name, score in selection.scores.items()}
    encoded = torch.from_numpy(own.nonzero()[0])
    before = [each.cpu() for each in earlier]
    return ImageReport(layout.sample, layout.num_tokens, kept, regions, scores, encoded, before)
