"""Errors that this package raises on purpose. All share ``PtpruneError``; each is also the built-in type that fits.

The command line turns any of them into one line and exit status 2. Every other exception is a bug, of ours or of a
library, and keeps its traceback.
"""

from __future__ import annotations


class PtpruneError(Exception):
    """Base of all errors of this package."""


class SettingError(PtpruneError, ValueError):
    """A setting has a value that it cannot have. The message begins with its name and says what is allowed."""


class UnknownSetting(SettingError, AttributeError):
    """No setting has that name. The message suggests settings with similar names."""


class UnsupportedModel(PtpruneError, TypeError):
    """No supported model family, or a variant of one that cannot be pruned right."""


class Refused(PtpruneError, ValueError):
    """An input, an option or a call that cannot be pruned right. Raised before anything is computed where possible."""


class MethodError(PtpruneError, ValueError):
    """A method or a score is not written, or did not answer, as it has to. The message names it and what was wanted."""


class AttachError(PtpruneError, RuntimeError):
    """The model cannot be attached to, changed or called now: it is compiled, in use, or has a pruner already."""


class UnknownTransformers(PtpruneError, RuntimeError):
    """The installed transformers lacks, or names otherwise, something that pruning relies on."""


class BrokenPass(PtpruneError, RuntimeError):
    """A pruned forward pass did not go as the hooks rely on. No token of it was returned and the model is clean."""


class UserError(PtpruneError):
    """Wrong usage or unreadable input at the command line. Says what is wrong, where, and what would be right."""


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
