"""The processes that ``accelerate launch`` started, each with a share of the questions; one where nothing did."""

from __future__ import annotations

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """What this process knows of all: ``num_processes``, ``process_index``, ``is_main_process``, its ``device``."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
