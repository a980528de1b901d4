"""Text from outside: whether it is text at all, and what of it a terminal may be shown."""

from __future__ import annotations

import re

# Control characters (C0 but tab and line feed, DEL, C1), lone surrogates, and marks that reorder text.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text that does nothing to a terminal but stand there: control characters as ``\x1b``, ``\u202e`` and so on.

    Bytes of a file name that are not UTF-8, which Python keeps as lone surrogates, are shown as ``\xff``.
    """
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    number = ord(match.group())
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a file name
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def is_text(text: str) -> bool:
    """Whether a string can be encoded: it holds no lone surrogate, as bytes that are not UTF-8 become."""
    return _SURROGATE.search(text) is None
