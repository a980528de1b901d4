"""The plots of a page: announced while the page is written, drawn once all of it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

Draw = Callable[[Path], None]


@dataclass
class Figures:
    """Files in one folder beside the page.

    Attributes:
        folder: its name.
        drawn: name of a file -> what draws it.
    """

    folder: str
    drawn: dict[str, Draw] = field(default_factory=dict)

    def add(self, kind: str, about: str, draw: Draw) -> str:
        """The Markdown that shows a new plot."""
        number = 1 + sum(name.startswith(kind) for name in self.drawn)
        name = f"{kind}-{number}.png"
        self.drawn[name] = draw
        return f"![{about}]({quote(self.folder)}/{name})"
