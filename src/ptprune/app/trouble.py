"""What a visitor is told when something cannot be done: one friendly line, no traceback and no path."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from PIL.Image import Image

from ptprune.errors import PtpruneError, UserError, first_line
from ptprune.pictures import open_picture

log = logging.getLogger(__name__)

NO_MEMORY = "The machine ran out of memory. Take a smaller picture, fewer tiles or a smaller model."
UNEXPECTED = "Something went wrong that should not have. The server's log says what."
GONE = "The picture is no longer here. Upload it again."


def said(error: BaseException) -> str:
    """One sentence for a visitor. What this package did not raise on purpose goes to the log, with its traceback."""
    if isinstance(error, PtpruneError):
        return " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return NO_MEMORY
    if isinstance(error, ImportError):  # a score that needs a library which is not installed; says which
        return first_line(error)
    log.error("unexpected error", exc_info=error)
    return UNEXPECTED


def open_upload(path: Path) -> Image:
    """``open_picture``, but without the folder of the server in the message.

    Raises:
        UserError: where the file is gone, or is no picture that a model can be shown.
    """
    if not path.is_file():
        raise UserError(GONE)
    try:
        return open_picture(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from None
