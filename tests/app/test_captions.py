"""Captions of the heat maps say what the settings in use do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ptprune.app.captions import captions
from ptprune.app.desk import Desk
from ptprune.app.form import Form
from ptprune.explain import levels
from ptprune.methods import METHODS, PaperTokenPruning, PyramidTokenPruning
from ptprune.scores import TOKEN_SCORES
from ptprune.scores.registry import ScoreRegistry
from tests.app.test_look import asked


@pytest.mark.parametrize(
    ("pruner", "level", "told"),
    [
        (PaperTokenPruning(), "fused", "within each tile's budget."),
        (PaperTokenPruning(), "region", "Salient tiles keep more tokens."),
        (PaperTokenPruning(), "instruction", "Strongest attention that any instruction token pays"),
        (PyramidTokenPruning(), "fused", "over the whole picture. A token that resembles chosen ones counts less."),
        (PyramidTokenPruning(choose="top"), "fused", "over the whole picture."),
        (PyramidTokenPruning(keep_ratio=0.1), "fused", "the second counts what the question looks at later, too."),
        (PyramidTokenPruning(region="cls-similarity"), "region", "Tokens of salient tiles count more."),
        (PyramidTokenPruning(), "instruction", "shared with the tokens around"),
        (PyramidTokenPruning(token="activation"), "token", "Norm of the encoder's feature"),
    ],
)
def test_they_follow_the_settings(pruner: PyramidTokenPruning, level: str, told: str) -> None:
    assert told in captions(pruner)[level]
    if level == "fused":
        assert captions(pruner)[level].endswith(told)


def test_a_users_own_score_says_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ScoreRegistry("token")
    own.register("mine")(lambda image: torch.zeros(1))
    monkeypatch.setattr(TOKEN_SCORES, "_scores", TOKEN_SCORES._scores | {"mine": own["mine"]})
    assert captions(PyramidTokenPruning(token="mine"))["token"] == ""  # it has no docstring


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"visionzip"}))  # not at this model's layer
def test_every_map_of_every_method_has_one(desk: Desk, form: Callable[..., Form], method: str) -> None:
    one = form(compare=False, method=method)
    drawn = levels(asked(desk, one).shown.report.images[0])
    assert all(captions(one.pruner())[level] for level in drawn)
