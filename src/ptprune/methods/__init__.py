"""All pruning methods by name. Each is a ``TokenPruner`` that overrides ``select``."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ptprune.errors import SettingError
from ptprune.methods.cdpruner import CDPruner
from ptprune.methods.dart import DART
from ptprune.methods.divprune import DivPrune
from ptprune.methods.fastervlm import FasterVLM
from ptprune.methods.fastv import FastV
from ptprune.methods.globalcom2 import GlobalCom2
from ptprune.methods.hired import HiRED
from ptprune.methods.pyramid import PaperTokenPruning, PyramidTokenPruning
from ptprune.methods.pyramiddrop import PyramidDrop
from ptprune.methods.random import RandomPruning
from ptprune.methods.scope import SCOPE
from ptprune.methods.sparsevlm import SparseVLM
from ptprune.methods.tops import TOPS
from ptprune.methods.uniform_grid import UniformGrid
from ptprune.methods.visionzip import VisionZip
from ptprune.methods.vispruner import VisPruner
from ptprune.pruner import TokenPruner

METHODS: dict[str, type[TokenPruner]] = {
    "ptp": PyramidTokenPruning,
    "ptp-paper": PaperTokenPruning,
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
    "scope": SCOPE,
    "cdpruner": CDPruner,
    "tops": TOPS,
}


def make_pruner(method: str, settings: Mapping[str, Any]) -> TokenPruner:
    """Create a method by name. Settings that are None or missing keep the method's defaults.

    Raises:
        SettingError: for an unknown method, a setting that the method does not have, or a value out of range.
    """
    if method not in METHODS:
        raise SettingError(f"method {method}: unknown; give one of {', '.join(METHODS)}")
    known = {setting.name for setting in fields(METHODS[method])}
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in known:
            raise SettingError(f"{name}: method {method} has no such setting; leave it out")
    return METHODS[method](**given)
