"""Every pruning method by name; each is a ``TokenPruner`` that overrides ``select``."""

from ptprune.methods.dart import DART
from ptprune.methods.divprune import DivPrune
from ptprune.methods.fastervlm import FasterVLM
from ptprune.methods.fastv import FastV
from ptprune.methods.globalcom2 import GlobalCom2
from ptprune.methods.hired import HiRED
from ptprune.methods.pyramid import PyramidTokenPruning
from ptprune.methods.pyramiddrop import PyramidDrop
from ptprune.methods.random import RandomPruning
from ptprune.methods.sparsevlm import SparseVLM
from ptprune.methods.uniform_grid import UniformGrid
from ptprune.methods.visionzip import VisionZip
from ptprune.methods.vispruner import VisPruner
from ptprune.pruner import TokenPruner

METHODS: dict[str, type[TokenPruner]] = {
    "ptp": PyramidTokenPruning,
    "random": RandomPruning,
    "uniform-grid": UniformGrid,
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "fastervlm": FasterVLM,
    "vispruner": VisPruner,
    "hired": HiRED,
    "globalcom2": GlobalCom2,
    "visionzip": VisionZip,
    "divprune": DivPrune,
    "dart": DART,
    "sparsevlm": SparseVLM,
}

__all__ = [
    "DART",
    "METHODS",
    "DivPrune",
    "FastV",
    "FasterVLM",
    "GlobalCom2",
    "HiRED",
    "PyramidDrop",
    "PyramidTokenPruning",
    "RandomPruning",
    "SparseVLM",
    "UniformGrid",
    "VisPruner",
    "VisionZip",
]
