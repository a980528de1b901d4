"""A desk with a tiny random model, and forms about a picture. No Gradio: ``integration/web`` tests the page itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptprune.app.desk import Desk
from ptprune.app.form import Form
from ptprune.app.models import Models
from tests.cli.conftest import checkpoint, picture

__all__ = ["checkpoint", "picture"]


@pytest.fixture
def desk(checkpoint: Path) -> Iterator[Desk]:
    desk = Desk(Models((str(checkpoint),)))
    yield desk
    desk.turns.close()


@pytest.fixture
def form(checkpoint: Path, picture: Path) -> Callable[..., Form]:
    """A form about the picture (28 visual tokens), with some controls set otherwise."""

    def make(**controls: Any) -> Form:
        usual: dict[str, Any] = {"question": "w5 w6 w7", "max_new_tokens": 5, "layer": 1, "tiles": "all"}
        return Form(**{"picture": picture, "model": str(checkpoint), **usual, **controls})

    return make
