"""Methods in steps: joint work is done once for all images that are alike, and each image gets its own result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.methods import METHODS
from ptprune.selection import Selection
from ptprune.steps import Steps, finish, joint
from tests.methods.test_coverage import scored
from tests.methods.test_rivals import LAYOUTS


def test_joint_work_is_shared_by_those_that_are_alike():
    calls: list[tuple[tuple[int, ...], int]] = []

    def extremes(values: torch.Tensor, *, times: int) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((tuple(values.shape), times))
        return values.amin(dim=-1) * times, values.amax(dim=-1) * times

    def run(number: int, length: int, times: int) -> Steps:
        low, high = yield from joint(extremes, torch.arange(length) + number, times=times)
        doubled = yield from joint(torch.mul, torch.stack([low, high]), other=2)
        [ends] = yield [doubled]
        return Selection(torch.tensor(ends).long())

    wanted = [(0, 3, 1), (5, 4, 1), (7, 3, 1), (9, 3, 2), (20, 3, 1)]
    found = finish([run(*each) for each in wanted])
    ends = [[2 * n * times, 2 * (n + length - 1) * times] for n, length, times in wanted]
    assert [selection.kept.tolist() for selection in found] == ends
    assert calls == [((3, 3), 1), ((4,), 1), ((3,), 2)]


def test_reads_wait_for_all_joint_work(monkeypatch):
    """However many pieces of joint work a method asks for first, a batch of several methods is read once."""
    read = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x, to=torch.Tensor.tolist: read.append(len(x)) or to(x))

    def run(pieces: int) -> Steps:
        value = torch.ones(1)
        for _ in range(pieces):
            value = yield from joint(torch.add, value, other=1)
        [[number]] = yield [value]
        return Selection(torch.tensor([int(number)]))

    assert [int(selection.kept) for selection in finish([run(0), run(3), run(1)])] == [1, 4, 2]
    assert read == [3]


SETTINGS: dict[str, Any] = {
    "defaults": {},
    "whole thumbnail": {"thumbnail": "whole"},
    "a floor": {"floor": 1},
    "the best": {"choose": "top"},
    "weighed tiles": {"region": "attention-mass"},
    "without the question": {"instruction": "none"},
    "raw question": {"normalize_instruction": False},
    "coverage": {"coverage": 0.6},
    "tiles": {"ranking": "tile"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_picture_of_a_batch_gets_what_it_would_get_alone(settings):
    """Pictures of the same and of other sizes, in an order that mixes them."""
    names = [*LAYOUTS, *reversed(LAYOUTS), "windows", "windows"]
    images = [scored(name, seed) for seed, name in enumerate(names)]
    pruner = PyramidTokenPruning(keep_ratio=0.4, **settings)
    for alone, together in zip(map(pruner.checked_select, images), pruner.select_all(images), strict=True):
        assert torch.equal(alone.kept, together.kept)
        assert alone.saliency == together.saliency
        for name, scores in alone.scores.items():
            torch.testing.assert_close(together.scores[name], scores)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_for_a_batch_as_for_one(method):
    images = [scored(name, seed) for seed, name in enumerate([*LAYOUTS, *LAYOUTS])]
    pruner = METHODS[method](keep_ratio=0.4)
    for alone, together in zip(map(pruner.checked_select, images), pruner.select_all(images), strict=True):
        assert torch.equal(alone.kept, together.kept)
