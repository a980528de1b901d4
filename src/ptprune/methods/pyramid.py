"""Pyramid Token Pruning (PTP), Liang et al., arXiv 2509.15704: region, token and instruction-guided importance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptprune.budget import allocate, allocate_beside
from ptprune.pruner import TokenPruner
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES, ImageEvidence
from ptprune.scores.region import region_weights
from ptprune.scores.registry import ScoreRegistry
from ptprune.selection import Selection, fuse, keep_best, keep_top
from ptprune.settings import FLAG, POSITIVE, SHARE, Rule, number, one_of, ratios, setting


def score_of(registry: ScoreRegistry) -> Rule:
    """The rule for a setting that names a score. Names are looked up late, so that users' scores count too."""

    def names() -> tuple[str, ...]:
        return *registry.names, *registry.reserved

    return Rule(
        lambda: f"one of {', '.join(map(repr, names()))}", lambda value: isinstance(value, str) and value in names()
    )


@dataclass(kw_only=True)
class PyramidTokenPruning(TokenPruner):
    """PTP: salient tiles get larger budgets; each tile keeps the tokens that stand out or that the question needs.

    Source: Liang et al., arXiv 2509.15704. The paper defines [CLS] attention as the token score, the strongest
    attention from the instruction as the instruction score, and their fusion with ``alpha`` 0.5. This project chose
    everything that the abstract leaves open, see docs/method.md.

    Attributes:
        coverage: keeps the fewest tokens whose share of the fused importance reaches this value, instead of a ratio.
        region: how salient a tile is, one of ``REGION_SCORES``.
        token: how much a token stands out in its tile, one of ``TOKEN_SCORES``.
        instruction: how much the question needs a token, one of ``INSTRUCTION_SCORES``, or "none".
        alpha: weight of the instruction level against the token level, 0 to 1.
        temperature: of the softmax over the tiles' standardised saliencies; a larger one gives more even budgets.
        thumbnail: "ratio" keeps the thumbnail's share of its own tokens, "whole" keeps all of it, "region" treats it
            as one more tile.
        ranking: "tile" ranks tokens within each tile's budget; "image" uses no budgets and ranks all tokens of the
            image by fused score * tile weight.
        coverage_bounds: smallest and largest ratio that ``coverage`` may choose.
        normalize_instruction: whether the instruction score is scaled to 0..1 before it is fused.
    """

    coverage: float | None = setting(None, number("over 0 and at most 1", lambda share: 0 < share <= 1, optional=True))
    region: str = setting("cls-similarity", score_of(REGION_SCORES))
    token: str = setting("cls-attention", score_of(TOKEN_SCORES))
    instruction: str = setting("attention", score_of(INSTRUCTION_SCORES))
    alpha: float = setting(0.5, SHARE)
    temperature: float = setting(1.0, POSITIVE)
    thumbnail: str = setting("ratio", one_of("ratio", "whole", "region"))
    normalize_instruction: bool = setting(True, FLAG)
    ranking: str = setting("tile", one_of("tile", "image"))
    coverage_bounds: tuple[float, float] = setting(
        (0.0, 1.0), ratios("two ratios between 0 and 1, the smaller one first")
    )

    @property
    def needs(self) -> frozenset[str]:
        needs = REGION_SCORES[self.region].needs | TOKEN_SCORES[self.token].needs
        return needs | INSTRUCTION_SCORES[self.instruction].needs if self.guided else needs

    @property
    def guided(self) -> bool:
        """Whether the question counts. With alpha 0 it does not, so its attention rows need not be computed."""
        return self.instruction != "none" and self.alpha > 0

    def select(self, image: ImageEvidence) -> Selection:
        token = TOKEN_SCORES[self.token].compute(image)
        instruction = INSTRUCTION_SCORES[self.instruction].compute(image) if self.guided else None
        fused = fuse(token, instruction, self.alpha, self.normalize_instruction, known_finite=True)
        if self.coverage is None:
            total = self.num_kept(image.layout.num_tokens)
        else:
            smallest, largest = (max(1, round(bound * len(fused))) for bound in self.coverage_bounds)
            total = min(max(covering(fused, self.coverage), smallest), largest)

        saliency = None
        if len(image.layout.regions) > 1:
            # move these few numbers to the CPU now, because budgets and the report read them anyway
            saliency = REGION_SCORES[self.region].compute(image).cpu()
        region_of = image.layout.region_of.to(image.device)
        if self.ranking == "image":
            weighted = fused if saliency is None else self._weighted(image, fused, saliency)
            kept = keep_best(weighted, total)
        else:
            kept = keep_top(fused, region_of, self.budgets(image, saliency, total))
        scores = {"token": token, "fused": fused} | ({} if instruction is None else {"instruction": instruction})
        return Selection(kept, None if saliency is None else saliency.tolist(), scores)

    def _weighted(self, image: ImageEvidence, fused: Tensor, saliency: Tensor) -> Tensor:
        """Fused scores times tile weights of mean 1; the thumbnail's weight is 1. FloatTensor [num_tokens]."""
        region_of, thumbnail = image.layout.region_of.to(image.device), image.layout.thumbnail
        tiles = [index for index in range(len(saliency)) if index != thumbnail or self.thumbnail == "region"]
        weights = torch.ones(len(saliency), dtype=torch.float64)
        weights[tiles] = region_weights(saliency[tiles], self.temperature) * len(tiles)
        weighted = fused * weights.to(fused)[region_of]
        if thumbnail is not None and self.thumbnail == "whole":
            weighted = weighted.masked_fill(region_of == thumbnail, torch.inf)
        return weighted

    def budgets(self, image: ImageEvidence, saliency: Tensor | None, total: int) -> list[int]:
        """Tokens to keep in each region, ``total`` in all; saliency: FloatTensor [num_regions], or None for an image of
        one region, which has no region stage."""
        sizes, thumbnail = image.layout.sizes(), image.layout.thumbnail
        if saliency is None:
            return image.layout.even_budgets(total)
        if thumbnail is None or self.thumbnail == "region":
            return allocate(region_weights(saliency, self.temperature).tolist(), sizes, total)
        tiles = [index for index in range(len(sizes)) if index != thumbnail]
        own = sizes[thumbnail] if self.thumbnail == "whole" else round(total * sizes[thumbnail] / sum(sizes))
        weights = region_weights(saliency[tiles], self.temperature).tolist()
        return allocate_beside(own, thumbnail, weights, sizes, total)


def covering(importance: Tensor, coverage: float) -> int:
    """The smallest number of tokens whose share of the total importance reaches ``coverage``, at least one.

    Args:
        importance: FloatTensor [num_tokens], not negative; if all are zero, every token counts the same.
    """
    importance = importance.double()
    if not bool(importance.any()):
        importance = torch.ones_like(importance)
    shares = importance.sort(descending=True).values.cumsum(0) / importance.sum()
    # a small tolerance, because a rounding error in the sum could cost one extra token
    return min(int((shares < coverage - 1e-9).sum()) + 1, len(importance))
