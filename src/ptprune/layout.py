"""Where an image's visual tokens are: regions (tiles and thumbnail) inside a prompt. Knows no model and no score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A tile, a thumbnail or a window of an image, and the visual tokens that belong to it.

    Attributes:
        start, stop: the range of the region's tokens among the image's prunable visual tokens, in prompt order.
        is_thumbnail: whether the region is the downsampled whole image.
    """

    start: int
    stop: int
    is_thumbnail: bool = False

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """One image of a prompt: its regions, and where its prunable visual tokens stand in the (padded) batch row.

    Attributes:
        sample: batch row.
        tokens: LongTensor [num_tokens], prompt positions of the image's prunable visual tokens, increasing.
        regions: in prompt order; together they cover ``range(num_tokens)`` without overlap.
        encoded: range of rows of the vision encoder's output (one row a region) that belong to this image.
    """

    sample: int
    tokens: Tensor
    regions: tuple[Region, ...]
    encoded: range

    def __post_init__(self) -> None:
        ends = [0, *(region.stop for region in self.regions)]
        starts = [*(region.start for region in self.regions), self.num_tokens]
        if ends != starts:
            raise ValueError(f"regions must cover the {self.num_tokens} tokens in order, got {list(self.regions)}")

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.numel())

    @property
    def thumbnail(self) -> int | None:
        """Index of the thumbnail among ``regions``, or None where the image has a single tile."""
        return next((i for i, region in enumerate(self.regions) if region.is_thumbnail), None)

    def region_of_token(self) -> Tensor:
        """LongTensor [num_tokens]: the index of the region that each token belongs to."""
        sizes = torch.tensor([region.num_tokens for region in self.regions], device=self.tokens.device)
        return torch.repeat_interleave(torch.arange(len(self.regions), device=self.tokens.device), sizes)
