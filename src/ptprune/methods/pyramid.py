"""Pyramid Token Pruning (PTP), Liang et al., arXiv 2509.15704: region, token and instruction-guided importance."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.budget import allocate, allocate_beside, halfway
from ptprune.methods.determinantal import choose_diverse, choose_diverse_by_region
from ptprune.methods.distinct import distinct, distinct_by_region
from ptprune.pruner import TokenPruner
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES, ImageEvidence
from ptprune.scores.finite import read
from ptprune.scores.region import region_weights
from ptprune.selection import Selection, fuse_levels, keep_best, keep_top
from ptprune.settings import FLAG, POSITIVE, SHARE, number, one_of, ratios, score_of, setting, whole
from ptprune.steps import Joint, Steps, joint

LIKENESS = {"embeddings": "embeddings", "features": "token_features"}  # setting -> field of the evidence
LEAST = 1e-6  # fused score as a weight
AGAIN = 0.25  # of the question's attention at the second cut, against the score at the first


@dataclass(kw_only=True)
class PyramidTokenPruning(TokenPruner):
    """PTP: tokens stay that stand out in a salient tile, or that the question needs, and that differ from the others.

    Source: Liang et al., arXiv 2509.15704. The paper defines [CLS] attention as the token score, the strongest
    attention from the instruction as the instruction score, their fusion with ``alpha`` 0.5, and a budget for each
    tile: ``ptp-paper`` does this. The defaults here are ours where they lost less in crowded pictures and on pages of
    print, see docs/method.md.

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
        choose: how tokens are taken within a budget (of a tile, or of the image with ``ranking="image"``). "top": the
            best fused scores. "distinct": those that score high and are like none that scores higher, see
            ``distinct``; ours. "coverage": greedily those that score high and differ from what was taken, see
            ``determinantal``; ours, and slow on a GPU.
        power: of the fused score as a weight in "coverage", and its half in "distinct"; 0 looks at differences alone.
        likeness: what these two compare: the tokens' "embeddings" at the language model's input, or the vision
            encoder's "features".
        floor: tokens that every tile keeps at least, as far as the image's tokens and the smallest tile allow.
        first_ratio: share of the tokens that the cut before ``layer`` leaves at least. Where fewer are to stay, the
            others are dropped before ``second_layer``, by the same score and what the question looks at by then. 0:
            all are dropped before ``layer``, as in the paper. Without an instruction level that reads attention, or
            with ``coverage``, there is one cut.
        second_layer: None: halfway from ``layer`` to the end of the language model.
        coverage_bounds: smallest and largest ratio that ``coverage`` may choose.
        normalize_instruction: whether the instruction score is scaled to 0..1 before it is fused.
    """

    coverage: float | None = setting(None, number("over 0 and at most 1", lambda share: 0 < share <= 1, optional=True))
    region: str = setting("uniform", score_of(REGION_SCORES))
    token: str = setting("cls-attention", score_of(TOKEN_SCORES))
    instruction: str = setting("neighbourhood", score_of(INSTRUCTION_SCORES))
    alpha: float = setting(0.6, SHARE)
    temperature: float = setting(1.0, POSITIVE)
    thumbnail: str = setting("ratio", one_of("ratio", "whole", "region"))
    normalize_instruction: bool = setting(True, FLAG)
    ranking: str = setting("image", one_of("tile", "image"))
    choose: str = setting("distinct", one_of("top", "distinct", "coverage"))
    power: float = setting(0.25, number("0 or more and finite", lambda value: 0 <= value < float("inf")))
    likeness: str = setting("embeddings", one_of(*LIKENESS))
    floor: int = setting(0, whole(0))
    first_ratio: float = setting(0.25, SHARE)
    second_layer: int | None = setting(None, whole(1, optional=True))
    coverage_bounds: tuple[float, float] = setting(
        (0.0, 1.0), ratios("two ratios between 0 and 1, the smaller one first")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            self.vision_layer is None or self.coverage is None, "vision_layer", "None if coverage chooses the ratio"
        )
        later = self.second_layer is None or self.second_layer > self.layer
        self._require(later, "second_layer", f"None or over layer, which is {self.layer}")

    @property
    def needs(self) -> frozenset[str]:
        needs = REGION_SCORES[self.region].needs | TOKEN_SCORES[self.token].needs
        if self.choose != "top":
            needs |= {LIKENESS[self.likeness]}
        return needs | INSTRUCTION_SCORES[self.instruction].needs if self.guided else needs

    @property
    def guided(self) -> bool:
        """Whether the question counts. With alpha 0 it does not, so its attention rows need not be computed."""
        return self.instruction != "none" and self.alpha > 0

    @property
    def cuts_twice(self) -> bool:
        """Whether ``second_layer`` may drop tokens: whether more are to go than ``first_ratio`` lets go at once, and
        the question's attention can tell which."""
        more = self.keep_tokens is not None or self.keep_ratio < self.first_ratio
        reads = self.guided and "instruction_attention" in INSTRUCTION_SCORES[self.instruction].needs
        return more and reads and self.coverage is None and self.first_ratio > 0

    def cut_layers(self, num_layers: int) -> tuple[int, ...]:
        if not self.cuts_twice:
            return (self.layer,)
        second = halfway(self.layer, num_layers) if self.second_layer is None else self.second_layer
        return (self.layer,) if second <= self.layer else (self.layer, second)

    def num_after(self, cut: int, num_tokens: int) -> int:
        """How many of an image's ``num_tokens`` tokens the first of two cuts leaves."""
        return max(self.num_kept(num_tokens), round(self.first_ratio * num_tokens))

    @property
    def weighs_regions(self) -> bool:
        """Whether a tile's saliency changes what is kept."""
        return self.ranking == "tile" or self.region != "uniform"

    @property
    def needs_grids(self) -> bool:
        return self.region == "attention-mass"

    def keeps_all(self, num_tokens: int | None = None) -> bool:
        return self.coverage is None and super().keeps_all(num_tokens)

    def steps(self, image: ImageEvidence) -> Steps:
        layout, earlier = image.layout, image.earlier
        levels = [TOKEN_SCORES[self.token]]
        if self.guided:
            levels.append(INSTRUCTION_SCORES[self.instruction])
        region = REGION_SCORES[self.region] if len(layout.regions) > 1 and self.weighs_regions else None
        salient: Sequence[float] | None = None
        if earlier is None:
            scores = [level.compute(image) for level in levels]
            weights = (1 - self.alpha, self.alpha) if self.guided else (1.0,)
            scaled = 2 if self.normalize_instruction else 1
        else:
            scores = [earlier.scores["fused"][earlier.kept], image.require("instruction_attention")]
            weights, scaled, region = (1 - AGAIN, AGAIN), 2, None
            salient = cast("Sequence[float] | None", earlier.saliency)
        fused, low, high = yield from joint(fuse_levels, *scores, weights=weights, scaled=scaled)
        # all numbers that the host needs, in one read: budgets are exact fractions of a few saliencies
        wanted = [low, high] if region is None else [low, high, region.compute(image)]
        compared = {}
        if self.choose != "top":
            compared = {LIKENESS[self.likeness]: image.require(LIKENESS[self.likeness]).float()}
        lowest, highest, *more = (yield from read(compared, *wanted)) if compared else (yield wanted)
        for level, extremes in zip(levels, zip(lowest, highest, strict=True), strict=True):
            level.check_finite(extremes)
        if region is not None:
            [salient] = more
            region.check_finite(salient)
        total = self.budget(layout) if image.last else min(self.num_after(0, layout.num_unpruned), layout.num_tokens)
        if self.coverage is not None:
            [[number]] = yield [covering(fused, self.coverage)[None]]
            smallest, largest = (max(1, round(bound * len(fused))) for bound in self.coverage_bounds)
            total = min(max(int(number), smallest), largest)
        kept = yield from self._choose(image, fused, salient, total, *compared.values())
        named = dict(zip(("token", "instruction"), scores, strict=False)) if earlier is None else {}
        return Selection(kept, salient, {**named, "fused": fused})

    def _choose(
        self,
        image: ImageEvidence,
        fused: Tensor,
        saliency: Sequence[float] | None,
        total: int,
        compared: Tensor | None = None,
    ) -> Generator[Joint, Any, Tensor]:
        """The kept tokens, LongTensor [total], sorted.

        Args:
            compared: what "distinct" and "coverage" compare, FloatTensor [num_tokens, d]; None for "top".
        """
        if self.ranking == "tile":
            return self._within(image, fused, self.budgets(image, saliency, total), compared)
        scores = fused if saliency is None else self._weighted(image, fused, saliency)
        first = self._given(image, fused, total, compared)
        if compared is not None and self.choose == "coverage":
            return choose_diverse(F.normalize(compared, dim=-1), importance(scores, self.power), total, first)
        given = () if first is None else (torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, first, True),)
        if compared is None:
            return (yield from joint(best, scores, *given, total=total))
        return (yield from joint(best_distinct, compared, scores, *given, total=total, power=self.power))

    def _within(self, image: ImageEvidence, scores: Tensor, budgets: Sequence[int], compared: Tensor | None) -> Tensor:
        """The chosen tokens of every region, sorted."""
        layout = image.layout
        if compared is not None:
            vectors, weights = F.normalize(compared, dim=-1), importance(scores, self.power)
            if self.choose == "coverage":
                return choose_diverse_by_region(vectors, weights, layout, budgets)
            scores = distinct_by_region(vectors, weights, layout)
        return keep_top(scores, layout.region_of.to(image.device), budgets, layout.sizes())

    def _given(self, image: ImageEvidence, fused: Tensor, total: int, compared: Tensor | None) -> Tensor | None:
        """Tokens that stay whatever their rank in the image: a thumbnail kept whole, and every other region's floor."""
        layout = image.layout
        whole = layout.thumbnail if self.thumbnail == "whole" else None
        if whole is None and not self.floor:
            return None  # at a second cut, sizes have to be read from the device
        sizes = layout.sizes()
        floors = [0 if number == whole else self._floor(sizes, total) for number in range(len(sizes))]
        given = [] if whole is None else [layout.upload(layout.members_on_host()[whole])]
        if any(floors):
            given.append(self._within(image, fused, floors, compared))
        return torch.cat(given) if given else None

    def _floor(self, sizes: Sequence[int], total: int) -> int:
        return min(self.floor, total // len(sizes), *sizes)

    def _weighted(self, image: ImageEvidence, fused: Tensor, saliency: Sequence[float]) -> Tensor:
        """Fused scores times tile weights of mean 1; the thumbnail's weight is 1. FloatTensor [num_tokens]."""
        region_of, thumbnail = image.layout.region_of.to(image.device), image.layout.thumbnail
        tiles = [index for index in range(len(saliency)) if index != thumbnail or self.thumbnail == "region"]
        weights = torch.ones(len(saliency), dtype=torch.float64)
        weights[tiles] = torch.tensor(self._weights(saliency, tiles), dtype=torch.float64) * len(tiles)
        return fused * weights.to(fused)[region_of]

    def _weights(self, saliency: Sequence[float], tiles: Sequence[int]) -> list[float]:
        return region_weights([saliency[index] for index in tiles], self.temperature)

    def budgets(self, image: ImageEvidence, saliency: Sequence[float] | None, total: int) -> list[int]:
        """Tokens to keep in each region, ``total`` in all; saliency: a number a region, or None for an image of one
        region, which has no region stage."""
        sizes, thumbnail = image.layout.sizes(), image.layout.thumbnail
        if saliency is None:
            return image.layout.even_budgets(total)
        floor = self._floor(sizes, total)
        left, total = [size - floor for size in sizes], total - floor * len(sizes)
        if thumbnail is None or self.thumbnail == "region":
            budgets = allocate(self._weights(saliency, range(len(sizes))), left, total)
        else:
            tiles = [index for index in range(len(sizes)) if index != thumbnail]
            share = (total + floor * len(sizes)) * sizes[thumbnail] / sum(sizes)
            own = sizes[thumbnail] if self.thumbnail == "whole" else round(share)
            weights = self._weights(saliency, tiles)
            budgets = allocate_beside(max(own - floor, 0), thumbnail, weights, left, total)
        return [budget + floor for budget in budgets]


@dataclass(kw_only=True)
class PaperTokenPruning(PyramidTokenPruning):
    """PTP as its paper describes it: a budget for each tile, and in each the tokens of the best fused scores.

    Source: Liang et al., arXiv 2509.15704. This project chose what the abstract leaves open, see docs/method.md. The
    settings are those of ``PyramidTokenPruning``, with other defaults.
    """

    region: str = "cls-similarity"
    instruction: str = "attention"
    alpha: float = 0.5
    ranking: str = "tile"
    choose: str = "top"
    first_ratio: float = 0.0


def importance(scores: Tensor, power: float) -> Tensor:
    """The weights of "distinct" and "coverage". None is 0, so that constant scores count every token alike."""
    return scores.clamp(min=LEAST) ** power


def best(scores: Tensor, given: Tensor | None = None, *, total: int) -> Tensor:
    """The tokens of the best scores [..., num_tokens], after those given, a BoolTensor of that shape."""
    return keep_best(scores if given is None else scores.masked_fill(given, torch.inf), total)


def best_distinct(compared: Tensor, scores: Tensor, given: Tensor | None = None, *, total: int, power: float) -> Tensor:
    """The tokens that score high and are like none that scores higher, after those given.

    Args:
        compared: FloatTensor [..., num_tokens, d].
        scores: FloatTensor [..., num_tokens].
        given: BoolTensor [..., num_tokens]; the others are compared with these too.
    """
    weights = importance(scores, power)
    if given is not None:
        weights = torch.where(given, weights.amax(dim=-1, keepdim=True) + 1, weights)
    return best(distinct(F.normalize(compared, dim=-1), weights), given, total=total)


def covering(importance: Tensor, coverage: float) -> Tensor:
    """The smallest number of tokens whose share of the total importance reaches ``coverage``, at least one.

    Args:
        importance: FloatTensor [num_tokens], not negative; constant importance counts every token alike.

    Returns:
        LongTensor [], so that nothing is read from the device here.
    """
    importance = importance.double()
    importance = torch.where(importance.any(), importance, 1.0)
    shares = importance.sort(descending=True).values.cumsum(0) / importance.sum()
    # a hair below, else rounding of the sum asks for one token more
    return ((shares < coverage - 1e-9).sum() + 1).clamp(max=len(importance))
