"""The processes that ``accelerate launch`` started, each with a share of the questions; one where nothing did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ptprune.checkpoints import choose_device
from ptprune.files import append_to, make_folder, writing


def processes() -> PartialState:
    """The state of this process: ``num_processes``, ``process_index``, ``is_main_process``, its ``device``."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_device(name: str) -> torch.device:
    """The device of this process: each of several has its own, a single one takes ``name`` as ``ptprune run`` does.

    Raises SettingError for a device that is not available.
    """
    state = processes()
    return choose_device(name) if state.num_processes == 1 else torch.device(state.device)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send all output of lmms-eval and the libraries behind it to a file, one a process. Enter before importing it.

    Raises UserError where the file cannot be written.
    """
    index = processes().process_index
    own = path.with_name(f"{path.stem}-{index}{path.suffix}") if index else path
    make_folder(path.parent, f"--out {path.parent}")
    with writing(f"--out {path.parent}"):
        log = append_to(own)
    with log, redirect_stdout(log), redirect_stderr(log):
        yield
