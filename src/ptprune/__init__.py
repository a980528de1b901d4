"""Pyramid Token Pruning for tiled vision-language models on transformers."""

from ptprune.methods import METHODS, PyramidTokenPruning, RandomPruning
from ptprune.pruner import TokenPruner
from ptprune.report import ImageReport, PruningReport, RegionReport

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ImageReport",
    "PruningReport",
    "PyramidTokenPruning",
    "RandomPruning",
    "RegionReport",
    "TokenPruner",
    "__version__",
]
