"""Checkpoints: where they are, which family they are of, and how their processor and model are loaded."""

from ptprune.checkpoints.checkpoint import SHIPPED, Checkpoint, choose_device, choose_dtype
from ptprune.checkpoints.load import Loaded, load

__all__ = ["SHIPPED", "Checkpoint", "Loaded", "choose_device", "choose_dtype", "load"]
