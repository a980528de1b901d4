"""GlobalCom2, Liu et al., arXiv 2501.05179: the thumbnail guides how tiles are pruned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptprune.budget import allocate
from ptprune.layout import ImageLayout
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.scores.thumbnail import attention_shares, guiding, seen_from_thumbnail
from ptprune.selection import Selection, keep_top
from ptprune.settings import POSITIVE, setting
from ptprune.steps import Steps


@dataclass(kw_only=True)
class GlobalCom2(TokenPruner):
    """GlobalCom2: the thumbnail's [CLS] sets each tile's budget and, with the tile's own, ranks its tokens; for tiles.

    Source: Xuyang Liu et al., "Compression with Global Guidance", arXiv 2501.05179, the adaptive compression of crops.
    Let ``s`` be the thumbnail's attention summed over each tile's area and ``R`` the ratio. A tile keeps
    ``R * (1 + softmax(s / temperature) - 1 / tiles)`` of its tokens. They rank by the sum of the tile's own attention
    and the thumbnail's attention at the token's place, each scaled to length one over the tile. The thumbnail keeps
    ``R`` of its own tokens by its own attention.

    Differs here: budgets are exact (largest remainder, the excess over a tile's size is redistributed); theirs are
    rounded down and clipped. ``s`` is a share of the attention on all tiles, so it does not depend on how patches
    become tokens; a token that straddles two tiles counts by area. Without a thumbnail, ``s`` is the attention on the
    region's own tokens, and tokens rank by their own attention alone. Without [CLS], the mean attention from all
    patches replaces it. Equal scores rank by index. Shares are at most 1, as their sums are, so their temperature of
    10 leaves the budgets almost equal.

    Attributes:
        temperature: of the softmax over the tiles' attention; a smaller one favours the strongest tiles more.
    """

    needs = frozenset({"encoder_attention"})
    layer: int = 0
    temperature: float = setting(10.0, POSITIVE)

    @property
    def needs_grids(self) -> bool:
        return True

    def steps(self, image: ImageEvidence) -> Steps:
        layout, attention = image.layout, image.require("encoder_attention").float()
        [seen] = yield from read({"encoder_attention": attention}, guiding(image, attention))
        shares, sizes = attention_shares(image, seen), layout.sizes()
        tiles = [number for number in range(len(sizes)) if number != layout.thumbnail]
        guided = np.exp(np.array([shares[number] for number in tiles]) / self.temperature)
        weights = np.ones(len(sizes))
        weights[tiles] += guided / guided.sum() - 1 / len(tiles)
        budgets = allocate(weights.tolist(), sizes, self.budget(layout))
        scores = of_length_one(attention, layout)
        if layout.thumbnail is not None:
            beside = of_length_one(seen_from_thumbnail(image, attention), layout)
            scores = scores + beside.masked_fill(layout.region_of.to(image.device) == layout.thumbnail, 0.0)
        kept = keep_top(scores, layout.region_of.to(image.device), budgets, sizes)
        saliency = [None if number == layout.thumbnail else share for number, share in enumerate(shares)]
        return Selection(kept, saliency if len(sizes) > 1 else None, {"token": scores})


def of_length_one(values: Tensor, layout: ImageLayout) -> Tensor:
    """Scale values [num_tokens] to length one over each region."""
    lengths = torch.linalg.vector_norm(layout.padded(values), dim=1).clamp(min=1e-12)
    return values / lengths[layout.region_of.to(values.device)]
