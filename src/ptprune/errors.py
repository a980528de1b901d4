"""The errors that this package raises on purpose. All derive from ``PtpruneError`` and from the built-in that fits.

The command line reports them in one line and exits with status 2. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class PtpruneError(Exception):
    """Base class of this package's errors."""


class SettingError(PtpruneError, ValueError):
    """A setting has an invalid value. The message begins with the setting's name and says what is allowed."""


class UnknownSetting(SettingError, AttributeError):
    """There is no setting of that name. The message suggests similar names."""


class UnsupportedModel(PtpruneError, TypeError):
    """The model belongs to no supported family, or is a variant that cannot be pruned correctly."""


class Refused(PtpruneError, ValueError):
    """An input, an option or a call cannot be pruned correctly. Raised before anything is computed if possible."""


class MethodError(PtpruneError, ValueError):
    """A method or a score breaks its interface. The message names it and what was expected."""


class AttachError(PtpruneError, RuntimeError):
    """The model is compiled, in use, or already has a pruner, so it cannot be attached to, changed or called now."""


class UnknownTransformers(PtpruneError, RuntimeError):
    """The installed transformers lacks something that pruning relies on, or has it under another name."""


class BrokenPass(PtpruneError, RuntimeError):
    """A pruned forward pass did not run as expected. It returned no token, and the model is clean."""


class UserError(PtpruneError):
    """Wrong usage or unreadable input. The message says what is wrong, where, and what would be right."""


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
