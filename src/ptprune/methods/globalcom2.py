"""GlobalCom2, Liu et al., arXiv 2501.05179: the thumbnail guides how tiles are pruned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from ptprune.budget import allocate
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.thumbnail import attention_shares, seen_from_thumbnail
from ptprune.selection import Selection, keep_top
from ptprune.settings import POSITIVE, setting


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

    def select(self, image: ImageEvidence) -> Selection:
        layout, attention = image.layout, image.finite("encoder_attention")
        shares, sizes = attention_shares(image, attention), layout.sizes()
        tiles = [number for number in range(len(sizes)) if number != layout.thumbnail]
        guided = np.exp(np.array([shares[number] for number in tiles]) / self.temperature)
        weights = np.ones(len(sizes))
        weights[tiles] += guided / guided.sum() - 1 / len(tiles)
        budgets = allocate(weights.tolist(), sizes, self.num_kept(layout.num_tokens))
        scores = attention.clone()
        seen = None if layout.thumbnail is None else seen_from_thumbnail(image, attention)
        for number, tokens in enumerate(layout.members()):
            scores[tokens] = F.normalize(attention[tokens], dim=0)
            if seen is not None and number != layout.thumbnail:
                scores[tokens] += F.normalize(seen[tokens], dim=0)
        kept = keep_top(scores, layout.region_of.to(image.device), budgets, sizes)
        saliency = [None if number == layout.thumbnail else share for number, share in enumerate(shares)]
        return Selection(kept, saliency if len(sizes) > 1 else None, {"token": scores})
