"""What users' methods and scores answer: a right answer passes as it is, a wrong one is refused by whose it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptprune import TokenPruner
from ptprune.errors import MethodError, Refused, SettingError
from ptprune.layout import ImageLayout, Region
from ptprune.methods.pyramid import PaperTokenPruning
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES, ImageEvidence
from ptprune.scores.registry import ScoreRegistry
from ptprune.selection import Selection
from tests.internvl import batch, prompt, tiny_internvl

REGISTRIES = {"region": REGION_SCORES, "token": TOKEN_SCORES, "instruction": INSTRUCTION_SCORES}
NAN, INF = float("nan"), float("inf")


def image(**evidence: torch.Tensor) -> ImageEvidence:
    """Two tiles of four tokens."""
    layout = ImageLayout(0, torch.arange(8), (Region((2, 2)),) * 2, torch.arange(8) // 4, list)
    return ImageEvidence(layout, **evidence)


class Answering(TokenPruner):
    """Returns what it is told to."""

    answer: Any = None

    def select(self, image: ImageEvidence) -> Any:
        return self.answer


def checked(answer: Any, **evidence: torch.Tensor) -> Selection:
    pruner = Answering()
    pruner.answer = answer
    return pruner.checked_select(image(**evidence))


def kept(*indices: int) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.long)


STATES = {"embeddings": torch.zeros(8, 6)}
# what a refusal must name besides the method and what it got
KEPT, INDICES, SALIENCY = "kept as a LongTensor", "sorted unique indices below 8", "saliency as None or a list of 2"
STATE, SCORES = "states as None or a FloatTensor [2, 6]", "scores['mine'] as a FloatTensor [8]"


@pytest.mark.parametrize(
    ("answer", "wanted", "got"),
    [
        (None, "a Selection", "None"),
        (kept(1), "a Selection", "Tensor [1] of int64 on cpu"),
        ((kept(1), None), "a Selection", "tuple of 2"),
        (Selection([1, 2]), KEPT, "list of 2"),
        (Selection(kept()), KEPT, "Tensor [0] of int64"),
        (Selection(kept(1)[0]), KEPT, "Tensor [] of"),
        (Selection(kept(1)[None]), KEPT, "Tensor [1, 1]"),
        (Selection(kept(1).int()), KEPT, "Tensor [1] of int32"),
        (Selection(torch.ones(8) > 0), KEPT, "Tensor [8] of bool"),
        (Selection(kept(1).to("meta")), KEPT, "Tensor [1] of int64 on meta"),
        (Selection(kept(2, 1)), INDICES, "unsorted ones"),
        (Selection(kept(1, 2, 2)), INDICES, "duplicates"),
        (Selection(kept(-1, 2)), INDICES, "index -1"),
        (Selection(kept(1, 8)), INDICES, "index 8"),
        (Selection(kept(1, 9, 2)), INDICES, "index 9"),
        (Selection(kept(1, 2), [0.5]), SALIENCY, "list of 1"),
        (Selection(kept(1, 2), torch.ones(2)), SALIENCY, "Tensor [2]"),
        (Selection(kept(1, 2), ["a", "b"]), SALIENCY, ""),
        (Selection(kept(1), "ab"), SALIENCY, ""),
        (Selection(kept(1), 0.5), SALIENCY, "float"),
        (Selection(kept(1), np.ones(2)), SALIENCY, "ndarray"),
        (Selection(kept(1, 2), states=torch.zeros(1, 6)), STATE, "Tensor [1, 6]"),
        (Selection(kept(1, 2), states=torch.zeros(2, 5)), STATE, "Tensor [2, 5]"),
        (Selection(kept(1, 2), states=torch.zeros(2)), STATE, "Tensor [2]"),
        (Selection(kept(1, 2), states=torch.zeros(2, 6).long()), STATE, "Tensor [2, 6] of int64"),
        (Selection(kept(1, 2), states=torch.zeros(2, 6, device="meta")), STATE, "Tensor [2, 6] of float32 on meta"),
        (Selection(kept(1, 2), states=[[0.0] * 6] * 2), STATE, "list of 2"),
        (Selection(kept(1), scores=torch.zeros(8)), "scores as a dictionary", "Tensor [8]"),
        (Selection(kept(1), scores={"mine": torch.zeros(7)}), SCORES, "Tensor [7]"),
        (Selection(kept(1), scores={"mine": torch.zeros(8).long()}), SCORES, "Tensor [8] of int64"),
        (Selection(kept(1), scores={"mine": [0.0] * 8}), SCORES, "list of 8"),
    ],
)
def test_a_methods_wrong_answer(answer, wanted, got):
    with pytest.raises(MethodError, match=rf"Answering\.select .*{re.escape(wanted)}.* got .*{re.escape(got)}"):
        checked(answer, **STATES)


@pytest.mark.parametrize(
    "answer",
    [
        Selection(kept(0)),
        Selection(kept(*range(8))),
        Selection(kept(1, 7), [0.5, None], {"mine": torch.zeros(8).half()}, torch.zeros(2, 6).bfloat16()),
        Selection(kept(1, 7), (np.float32(0.5), np.int64(1))),
    ],
)
def test_a_right_answer_passes_as_it_is(answer):
    passed = checked(answer, **STATES)
    for name in ("kept", "states", "scores"):
        assert getattr(passed, name) is getattr(answer, name)
    if answer.saliency is not None:
        assert passed.saliency == list(answer.saliency)
        json.dumps(passed.saliency)


def test_states_without_evidence_that_tells_their_length():
    assert checked(Selection(kept(1), states=torch.zeros(1, 3))).states.shape == (1, 3)
    with pytest.raises(MethodError, match=r"states as None or a FloatTensor \[1, D\]"):
        checked(Selection(kept(1), states=torch.zeros(2, 3)))


@settings(deadline=None)
@given(st.lists(st.integers(-2, 9), max_size=9))
def test_indices_pass_where_they_are_increasing_and_the_images(indices):
    right = bool(indices) and indices == sorted(set(indices)) and set(indices) <= set(range(8))
    if right:
        assert checked(Selection(kept(*indices))).kept.tolist() == indices
    else:
        with pytest.raises(MethodError, match=r"Answering\.select must return"):
            checked(Selection(kept(*indices)))


def test_indices_are_read_from_the_device_once(monkeypatch):
    reads = []
    monkeypatch.setattr(
        torch.Tensor, "__bool__", lambda self, read=torch.Tensor.__bool__: reads.append(1) or read(self)
    )
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: reads.append(1) or self.item())
    checked(Selection(kept(1, 2), [1.0, 2.0], {"mine": torch.zeros(8)}, torch.zeros(2, 6)), **STATES)
    assert len(reads) == 1


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Registers a score named "mine" that returns a value, and makes a pruner that uses it."""

    def make(level: str, value: Any) -> PaperTokenPruning:
        registry = REGISTRIES[level]
        monkeypatch.setattr(registry, "_scores", dict(registry._scores))
        registry.register("mine")(lambda image: value)
        return PaperTokenPruning(**{"region": "uniform", level: "mine"})

    return make


EVIDENCE = {"encoder_attention": torch.rand(8), "instruction_attention": torch.rand(8)}
LENGTHS = {"region": 2, "token": 8, "instruction": 8}


@pytest.mark.parametrize(("level", "length"), LENGTHS.items())
@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (lambda length: torch.zeros(length - 1), "Tensor [{less}] of float32 on cpu"),
        (lambda length: torch.zeros(length, 1), "Tensor [{length}, 1] of float32 on cpu"),
        (lambda length: torch.zeros(1), "Tensor [1] of float32 on cpu"),  # would be broadcast
        (lambda length: torch.arange(length), "Tensor [{length}] of int64 on cpu"),
        (lambda length: torch.zeros(length, device="meta"), "Tensor [{length}] of float32 on meta"),
        (lambda length: [0.0] * length, "list of {length}"),
        (lambda length: np.zeros(length), "ndarray"),
        (lambda length: None, "None"),
    ],
)
def test_a_scores_wrong_answer(registered, level, length, wrong, got):
    pruner = registered(level, wrong(length))
    message = f"{level} score 'mine' must return a FloatTensor [{length}] on cpu, got {got}"
    with pytest.raises(MethodError, match=re.escape(message.format(length=length, less=length - 1))):
        pruner.checked_select(image(**EVIDENCE))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("ranking", ["tile", "image"])
@pytest.mark.parametrize(("level", "length"), LENGTHS.items())
def test_a_score_that_is_not_finite(registered, level, length, ranking, bad):
    values = torch.rand(length)
    values[1] = bad
    pruner = registered(level, values)
    pruner.ranking = ranking
    with pytest.raises(MethodError, match=f"^{level} score 'mine' holds NaN or infinite values$"):
        pruner.checked_select(image(**EVIDENCE))


@pytest.mark.parametrize(
    ("level", "name", "evidence"),
    [
        ("token", "cls-attention", "encoder_attention"),
        ("instruction", "attention", "instruction_attention"),
        ("region", "attention-mass", "encoder_attention"),
    ],
)
def test_the_packages_own_scores_blame_the_model(level, name, evidence):
    values = torch.rand(8)
    values[1] = NAN
    other = "received-attention" if level == "region" else "cls-attention"
    pruner = PaperTokenPruning(**{"region": "attention-mass", "token": other, level: name})
    broken = image(**{**EVIDENCE, "received_attention": torch.rand(8), evidence: values})
    with pytest.raises(Refused, match=f"the {level} scores hold NaN .* activations overflowed .{level}='{name}'"):
        pruner.checked_select(broken)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("level", "length"), LENGTHS.items())
def test_right_scores_of_every_precision(registered, level, length, dtype):
    pruner = registered(level, torch.linspace(0, 1, length).to(dtype))
    assert len(pruner.checked_select(image(**EVIDENCE)).kept) == 4


def test_all_images_are_read_at_once(monkeypatch):
    """Each read waits for the device."""
    read = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x, to=torch.Tensor.tolist: read.append(len(x)) or to(x))
    PaperTokenPruning(region="attention-mass").select_all([image(**EVIDENCE)] * 3)
    regions = len(image().layout.regions)
    assert read == [3 * (2 * 2 + regions)], "the extremes of two scores, and the saliencies"


@torch.no_grad()
def test_a_score_is_named_inside_a_model(registered):
    pruner, model = registered("token", torch.zeros(3)), tiny_internvl()
    with pruner(model), pytest.raises(MethodError, match=r"token score 'mine' must return a FloatTensor \[20\] on cpu"):
        model(**batch(prompt([5, 6], 5, [7, 8, 9])))


def fine(image: ImageEvidence) -> torch.Tensor:
    return torch.zeros(image.layout.num_tokens)


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda it: it.register("taken")(fine), "a token score named 'taken' exists already"),
        (lambda it: it.register("off")(fine), "a token score named 'off' exists already"),
        (lambda it: it.register(fine), "registered under a name, a string, got <function fine"),
        (lambda it: it.register(3)(fine), "registered under a name, a string, got 3"),
        (lambda it: it.register("")(fine), "registered under a name, a string, got ''"),
        (lambda it: it.register("mine")(None), "token score 'mine' must be a function of the evidence, got None"),
        (lambda it: it.register("mine")(torch.zeros(4)), "token score 'mine' must be a function of the evidence"),
        (
            lambda it: it.register("mine", needs=("encoder_atention",)),
            r"unknown needs of token score 'mine': 'encoder_atention' \(did you mean 'encoder_attention'",
        ),
        (lambda it: it.register("mine", needs="pixels"), r"write a collection of names such as .*, got 'pixels'"),
        (lambda it: it.register("mine", needs=None), r"write a collection of names such as .*, got None"),
        (lambda it: it.register("mine", needs=("layout",)), "unknown needs of token score 'mine': 'layout'; there are"),
    ],
)
def test_scores_that_are_not_registered(register, message):
    registry = ScoreRegistry("token", reserved=("off",))
    registry.register("taken")(fine)
    with pytest.raises(SettingError, match=message):
        register(registry)
    assert registry.names == ("taken",)


def test_none_means_no_instruction_level():
    with pytest.raises(SettingError, match="'none' exists already"):
        INSTRUCTION_SCORES.register("none")(fine)


def test_anything_that_can_be_called_is_a_score():
    registry = ScoreRegistry("token")
    registry.register("partial", needs=["encoder_attention"])(partial(fine))
    assert torch.equal(registry["partial"].compute(image()), torch.zeros(8))
    assert registry["partial"].needs == {"encoder_attention"}
