"""What travels with an image to the model: how many tokens stay, and which tiles are encoded. Knows no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.errors import MethodError
from ptprune.families.encoded import EvidenceRequest
from ptprune.families.grid import infer_columns
from ptprune.layout import THUMBNAIL, Place, even_place
from ptprune.methods.pyramid import PyramidTokenPruning
from ptprune.scores.tiles import TILE_SCORES, TileEvidence, choose_tiles
from ptprune.vllm.settings import thumbnail_first


@dataclass(frozen=True)
class TilePlan:
    """Which tiles of a picture are encoded, beside its thumbnail.

    Attributes:
        grid: (rows, columns) of the picture's tiles.
        given: those whose pixels the model gets, numbered row by row, increasing.
        number: how many of them it encodes. If it is given more, it chooses once it has encoded the thumbnail.
    """

    grid: tuple[int, int]
    given: tuple[int, ...]
    number: int

    @property
    def chosen_by_model(self) -> bool:
        return self.number < len(self.given)

    def columns(self, tiles: Tensor, size: int) -> Tensor:
        """Where the tokens of tiles of these numbers (LongTensor) and, last, of the thumbnail stand among those of the
        whole picture, whose tiles have ``size`` tokens each."""
        numbers = F.pad(tiles, (0, 1), value=self.grid[0] * self.grid[1])
        return (numbers[:, None] * size + torch.arange(size, device=tiles.device)).flatten()

    def places(self, tiles: Sequence[int]) -> list[Place]:
        """Where tiles of these numbers and, last, the thumbnail lie in the picture."""
        rows, columns = self.grid
        return [*(even_place(*divmod(tile, columns), rows, columns) for tile in tiles), THUMBNAIL]


@dataclass(frozen=True)
class EncodingPlan:
    """What the model does with an image.

    Attributes:
        keep: tokens that stay.
        num_before: tokens of the text before the image, see ``TEXT``.
        num_instruction: tokens of the instruction.
        tiles: None: all are encoded.
    """

    keep: int
    num_before: int
    num_instruction: int
    tiles: TilePlan | None

    def write(self) -> Tensor:
        """LongTensor, of a length of its own."""
        tiles = self.tiles or TilePlan((0, 0), (), 0)
        return torch.tensor([self.keep, self.num_before, self.num_instruction, *tiles.grid, tiles.number, *tiles.given])

    @staticmethod
    def read(written: Tensor | Sequence[Tensor]) -> list[EncodingPlan]:
        """Plans that were written, all from one read; vLLM stacks those that are equally long."""
        if isinstance(written, Tensor):
            rows = written.tolist()
        else:
            numbers = iter(torch.cat(list(written)).tolist())
            rows = [list(islice(numbers, len(each))) for each in written]
        plans = []
        for keep, before, instruction, *grid, number, given in ((*row[:6], row[6:]) for row in rows):
            tiles = TilePlan((grid[0], grid[1]), tuple(given), number) if grid[0] else None
            plans.append(EncodingPlan(keep, before, instruction, tiles))
        return plans


def plan_tiles(
    pruner: PyramidTokenPruning, limits: Sequence[tuple[str | int, float]], pixels: Tensor
) -> TilePlan | None:
    """Which tiles of a picture are encoded, by its pixels where they tell; None: all.

    Args:
        limits: (tiles, tile_threshold), see ``choose_tiles``; the one that encodes the fewest tiles counts.
        pixels: [tiles, 3, height, width], the thumbnail last. A single tile is no thumbnail.

    Raises:
        MethodError: if the tile score is a user's own and does not return scores, or asks for the thumbnail's attention
            without having said so.
        Refused: on pixels that are not finite.
    """
    tiles, count = pixels[:-1], len(pixels) - 1
    numbers = [limit for limit, _ in limits if limit != "salient"]
    if not count or len(numbers) == len(limits) and min(map(int, numbers), default=count) >= count:
        return None
    given: Sequence[int] = range(count)
    number = min(map(int, numbers), default=count)
    if not thumbnail_first(pruner):
        score = TILE_SCORES[pruner.tile_score]
        values = score.compute(TileEvidence(tiles, _not_encoded(pruner.tile_score))).tolist()
        score.check_finite(values)
        # all limits cut the same ranking: what the strictest one leaves is among what the others leave
        chosen = min((choose_tiles(values, *limit) for limit in limits), key=sum)
        if all(chosen):
            return None
        given, number = [tile for tile in given if chosen[tile]], sum(chosen)
    previews = EvidenceRequest(pruner.needs, None).preview(pixels).numpy()
    columns = infer_columns(previews[:-1], previews[-1])
    return TilePlan((count // columns, columns), tuple(given), number)


def _not_encoded(score: str) -> Callable[[], Tensor]:
    def refuse() -> Tensor:
        raise MethodError(
            f"tile score {score!r} asks for the thumbnail's attention before the thumbnail is encoded: register it "
            "with needs=('encoder_attention',)"
        )

    return refuse
