"""The three pictures that the page offers: scenes of ``ptprune.tiny``, and a question about each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "examples"


@dataclass(frozen=True)
class Example:
    """``generate_scene(split, seed)``, as a file that ships, so that the page needs no drawing library."""

    name: str
    seed: int
    question: str
    split: str = "test"

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.png"


EXAMPLES = (
    Example("cat", 129, "which shape is green?"),
    Example("gravel", 122, "which letter is next to the heart?"),
    Example("plain", 123, "what colour is the 8?"),
)
