"""The levels of the pyramid: pure functions on tensors, in one registry a level. They never see a model."""

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.instruction import INSTRUCTION_SCORES
from ptprune.scores.region import REGION_SCORES
from ptprune.scores.tiles import TILE_SCORES
from ptprune.scores.token import TOKEN_SCORES

__all__ = ["INSTRUCTION_SCORES", "REGION_SCORES", "TILE_SCORES", "TOKEN_SCORES", "ImageEvidence"]
