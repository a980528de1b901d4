"""HiRED, Arif et al., arXiv 2408.10945: the thumbnail's attention splits the budget across the tiles."""

from __future__ import annotations

from dataclasses import dataclass

from ptprune.budget import allocate_beside
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.finite import read
from ptprune.scores.thumbnail import attention_shares, guiding
from ptprune.selection import Selection, keep_top
from ptprune.settings import SHARE, setting
from ptprune.steps import Steps


@dataclass(kw_only=True)
class HiRED(TokenPruner):
    """HiRED: tiles where the thumbnail's [CLS] looks get larger budgets, filled by [CLS] attention; for tiled models.

    Source: Kazi Hasan Ibn Arif et al., arXiv 2408.10945, token budget distribution and token dropping. The thumbnail
    gets the share ``alpha`` of the budget, capped at its size. The tiles split the rest in proportion to the
    thumbnail's attention on their area.

    Differs here: budgets are exact (largest remainder, a full tile's excess is redistributed); theirs are rounded down
    and clipped, so tokens are lost. Attention is summed over a tile's true area; their code counts the strongest tokens
    in even stretches of the flattened thumbnail. Budgets and tokens both use the layer whose features the model uses;
    theirs take the budgets from the encoder's first layer. Without a thumbnail, budgets follow the attention on the
    regions' own tokens. Without [CLS], the mean attention from all patches replaces it. Equal scores rank by index.

    Attributes:
        alpha: the thumbnail's share of the kept tokens.
    """

    needs = frozenset({"encoder_attention"})
    layer: int = 0
    alpha: float = setting(0.5, SHARE)

    @property
    def needs_grids(self) -> bool:
        return True

    def steps(self, image: ImageEvidence) -> Steps:
        layout, attention = image.layout, image.require("encoder_attention").float()
        [seen] = yield from read({"encoder_attention": attention}, guiding(image, attention))
        sizes, thumbnail, total = layout.sizes(), layout.thumbnail, self.budget(layout)
        shares: list[float | None] = [*attention_shares(image, seen)]
        if thumbnail is not None:
            shares[thumbnail] = None
        # ``allocate`` multiplies by the size
        weights = [share / size for share, size in zip(shares, sizes, strict=True) if share is not None]
        budgets = allocate_beside(int(total * self.alpha), thumbnail, weights, sizes, total)
        kept = keep_top(attention, layout.region_of.to(image.device), budgets, sizes)
        return Selection(kept, shares if len(shares) > 1 else None, {"token": attention})
