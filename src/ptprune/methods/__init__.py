"""Every pruning method by name; each is a ``TokenPruner`` that overrides ``select``."""

from ptprune.methods.pyramid import PyramidTokenPruning
from ptprune.methods.random import RandomPruning
from ptprune.pruner import TokenPruner

METHODS: dict[str, type[TokenPruner]] = {"ptp": PyramidTokenPruning, "random": RandomPruning}

__all__ = ["METHODS", "PyramidTokenPruning", "RandomPruning"]
