"""Where a model is loaded, and in which precision."""

from __future__ import annotations

import torch

from ptprune.errors import SettingError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose_dtype(name: str) -> str:
    """A precision; "auto" is the checkpoint's own.

    Raises:
        SettingError: for a name that is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise SettingError(f"dtype {name}: unknown; give one of {', '.join(DTYPES)}")
    return name


def choose_device(name: str) -> torch.device:
    """A device; "auto" is the GPU if there is one.

    Raises:
        SettingError: for a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise SettingError(
            f"device {name}: not available here; give auto, cpu, or a device that torch can use"
        ) from None
    return device
