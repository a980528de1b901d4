"""Pyramid Token Pruning for tiled vision-language models on transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptprune.attach.tile_cache import TileCache
    from ptprune.checkpoints import load
    from ptprune.methods import METHODS, PyramidTokenPruning, RandomPruning
    from ptprune.pruner import TokenPruner
    from ptprune.report import ImageReport, PruningReport, RegionReport
    from ptprune.verification import verify

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "ImageReport",
    "PruningReport",
    "PyramidTokenPruning",
    "RandomPruning",
    "RegionReport",
    "TileCache",
    "TokenPruner",
    "__version__",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch and transformers take seconds, which ``ptprune --help`` need not wait for."""
    if name in __all__:
        for module in ("methods", "attach.tile_cache", "pruner", "report", "checkpoints", "verification"):
            if hasattr(found := import_module(f"ptprune.{module}"), name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
