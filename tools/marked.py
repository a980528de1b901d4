"""Parts of Markdown files that commands write: between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``."""

from __future__ import annotations

from pathlib import Path


def between(text: str, name: str) -> str:
    """The marked part of a text, without the lines of its marks.

    Raises:
        ValueError: where it is not marked exactly once.
    """
    return _parts(text, name)[1]


def write_between(path: Path, name: str, part: str) -> None:
    """Put ``part`` where the file's marked part stands.

    Raises:
        ValueError: where it is not marked exactly once.
    """
    before, _, after = _parts(path.read_text(), name)
    path.write_text(f"{before}{part}{after}")


def _parts(text: str, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    before, rest = text.split(begin)
    part, after = rest.split(end)
    return before + begin, part, end + after
