"""Settings are checked whenever they are set, a refused value changes nothing, and an attached pruner is frozen."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptprune import METHODS, PyramidTokenPruning, RandomPruning, TokenPruner
from ptprune.encoding import EncoderSettings
from ptprune.errors import AttachError, MethodError, SettingError, UnknownSetting
from ptprune.methods import DART, PyramidDrop, VisionZip
from ptprune.scores import INSTRUCTION_SCORES, TOKEN_SCORES
from ptprune.settings import setting, whole
from tests.internvl import batch, prompt, tiny_internvl

# A value of every kind that users may hand over by mistake.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(["original", "compact", "ratio", "image", "uniform", "none"]),
    st.lists(st.floats(0, 1), max_size=3),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([np.float32(0.5), np.int64(3), np.bool_(True), np.array([1, 2]), np.array(0.5), torch.tensor(1)]),
)
SETTINGS = [(name, each.name) for name, method in METHODS.items() for each in fields(method)]


@dataclass(kw_only=True)
class Between(RandomPruning):
    """As users write one: fields without rules, checks in ``__post_init__``, one of them over two fields."""

    low: int = 1
    high: int = 5
    made: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(isinstance(self.low, int) and self.low >= 0, "low", "a whole number from 0")
        self._require(self.low < self.high, "low", f"below high, which is {self.high}")
        self.table = list(range(self.high))


@pytest.mark.smoke
@pytest.mark.parametrize("pruner", [PyramidTokenPruning(keep_ratio=0.25)])
@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("keep_ratio", 2, "got 2"),
        ("keep_ratio", True, "got True, a truth value"),
        ("keep_ratio", np.bool_(True), "got .*, a truth value"),
        ("keep_ratio", np.array(0.5), r"got a NumPy array \[\]: give a plain number"),
        ("keep_ratio", torch.tensor(0.5), r"got a Tensor \[\]: give a plain number"),
        ("keep_ratio", "0.5", "got '0.5'"),
        ("keep_tokens", True, "got True"),
        ("keep_tokens", np.float64(5), "got"),
        ("layer", False, "got False"),
        ("layer", np.array([1, 2]), r"got a NumPy array \[2\]"),
        ("window", True, "got True"),
        ("tiles", "some", "got 'some'"),
        ("tiles", 0, "got 0"),
        ("tiles", True, "got True"),
        ("tiles", 2.0, "got 2.0"),
        ("tile_threshold", 1.5, "got 1.5"),
        ("tile_score", "of mine", "got 'of mine'"),
        ("left_out", "keep", "got 'keep'"),
        ("tile_batch", 0, "got 0"),
        ("vision_layer", 0, "got 0"),
        ("vision_margin", 0.9, "got 0.9"),
        ("vision_margin", float("inf"), "got inf"),
        ("vision_floor", 1.5, "got 1.5"),
        ("positions", ["original"], r"got \['original'\]"),
        ("positions", np.array(["original", "a"]), "got a NumPy array"),
        ("alpha", True, "got True"),
        ("temperature", float("inf"), "got inf"),
        ("coverage_bounds", ("a", "b"), "got"),
        ("coverage_bounds", (False, True), "got"),
        ("coverage_bounds", (float("nan"), 1), "got"),
        ("token", ["cls-attention"], "got"),
        ("instruction", "of mine", "got 'of mine'"),
        ("normalize_instruction", 1, "got 1"),
    ],
)
def test_a_wrong_value_is_refused_at_once_and_the_old_one_stays(pruner, name, value, got):
    before, message = asdict(pruner), f"^{name} must be .*{got}"
    with pytest.raises(SettingError, match=message):
        setattr(pruner, name, value)
    with pytest.raises(SettingError, match=message):
        PyramidTokenPruning(**{name: value})
    assert asdict(pruner) == before


@given(st.sampled_from(SETTINGS), ODD)
def test_a_value_can_be_set_where_a_pruner_can_be_made_with_it(which, value):
    """For every setting of every method; no other error than SettingError comes out, whatever the value."""
    method, name = METHODS[which[0]], which[1]
    pruner = method()
    before = asdict(pruner)
    made = None
    with suppress(SettingError):
        made = method(**{name: value})
    if made is None:
        with pytest.raises(SettingError, match=f"^{name} must be .*, got "):
            setattr(pruner, name, value)
        assert asdict(pruner) == before
    else:
        setattr(pruner, name, value)
        assert pruner == made
        assert not isinstance(getattr(pruner, name), np.generic | np.ndarray | torch.Tensor)
        assert pickle.loads(pickle.dumps(pruner)) == pruner == replace(pruner) == copy.copy(pruner)


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.longdouble])
def test_numpy_floats_are_floats(number):
    pruner = PyramidTokenPruning(keep_ratio=number(0.25), coverage_bounds=[number(0.5), number(1)])
    pruner.alpha = number(0.75)
    assert pruner == PyramidTokenPruning(keep_ratio=0.25, coverage_bounds=(0.5, 1.0), alpha=0.75)
    assert [type(pruner.keep_ratio), type(pruner.alpha), *map(type, pruner.coverage_bounds)] == [float] * 4
    assert json.dumps(asdict(pruner)) == json.dumps(asdict(pickle.loads(pickle.dumps(pruner))))
    assert "np." not in repr(pruner)
    with pytest.raises(SettingError, match="keep_ratio must be"):
        pruner.keep_ratio = number(1.5)


@pytest.mark.parametrize("number", [np.int8, np.int32, np.int64, np.uint16])
def test_numpy_whole_numbers_are_whole_numbers(number):
    pruner = PyramidDrop(keep_tokens=number(5), layer=number(3), window=number(7), stages=number(2))
    assert pruner == PyramidDrop(keep_tokens=5, layer=3, window=7, stages=2)
    assert {type(getattr(pruner, name)) for name in ("keep_tokens", "layer", "window", "stages")} == {int}
    assert type(PyramidTokenPruning(keep_ratio=number(1)).keep_ratio) is int
    flag = PyramidTokenPruning(normalize_instruction=np.bool_(False)).normalize_instruction
    assert flag is False


def test_a_list_cannot_be_changed_behind_the_checks():
    bounds = [0.25, 0.75]
    pruner = PyramidTokenPruning(coverage_bounds=bounds)
    bounds[0] = 5
    assert pruner.coverage_bounds == (0.25, 0.75)


def test_methods_that_allow_less_than_their_base():
    drop, merge = PyramidDrop(), VisionZip()
    with pytest.raises(SettingError, match=r"layer must be a whole number from 1 \(tokens rank by .*\), got 0"):
        drop.layer = 0
    with pytest.raises(SettingError, match=r"layer must be 0 \(tokens are merged before the language model\), got 2"):
        merge.layer = 2
    with pytest.raises(SettingError, match="layer must be 0"):
        VisionZip(layer=False)
    assert (drop.layer, merge.layer) == (2, 0)


def test_a_default_of_a_subclass_keeps_the_rule():
    @dataclass(kw_only=True)
    class Early(DART):
        layer: int = 1
        keep_ratio: float = 0.9

    pruner = Early()
    with pytest.raises(SettingError, match="layer must be a whole number from 0, got -1"):
        pruner.layer = -1
    with pytest.raises(SettingError, match="pivots must be a whole number from 1"):
        pruner.pivots = 0

    @dataclass(kw_only=True)
    class Impossible(DART):
        keep_ratio: float = 9.0

    with pytest.raises(SettingError, match=r"keep_ratio must be .* got 9\.0"):
        Impossible()


def test_a_users_rule():
    @dataclass(kw_only=True)
    class Mine(RandomPruning):
        neighbours: int = setting(4, whole(1))

    assert Mine(neighbours=np.int64(2)).neighbours == 2
    with pytest.raises(SettingError, match="neighbours must be a whole number from 1, got 0"):
        Mine().neighbours = 0


def test_a_users_checks_hold_when_a_field_is_set():
    pruner = Between()
    with pytest.raises(SettingError, match="low must be a whole number from 0, got -1"):
        pruner.low = -1
    with pytest.raises(SettingError, match="low must be below high, which is 5, got 7"):
        pruner.low = 7
    with pytest.raises(SettingError, match="low must be below high, which is 1, got 1"):
        pruner.high = 1
    assert (pruner.low, pruner.high) == (1, 5)
    pruner.high, pruner.low = np.int64(9), 7
    assert pruner == Between(low=7, high=9)
    assert type(pruner.high) is int
    assert pickle.loads(pickle.dumps(pruner)) == pruner


def test_what_post_init_makes_of_a_value_is_what_is_set():
    @dataclass(kw_only=True)
    class Clamped(RandomPruning):
        size: int = 3

        def __post_init__(self) -> None:
            super().__post_init__()
            self.size = min(self.size, 10)

    pruner = Clamped(size=50)
    assert pruner.size == 10
    pruner.size = 2
    assert pruner.size == 2
    pruner.size = 50
    assert pruner.size == 10


def test_settings_read_from_a_pickle_are_checked():
    pruner = PyramidTokenPruning()
    with pytest.raises(SettingError, match="keep_ratio must be"):
        copy.copy(pruner).__setstate__({**pruner.__getstate__(), "keep_ratio": 3})
    with pytest.raises(UnknownSetting, match="no setting 'ratio'"):
        copy.copy(pruner).__setstate__({"ratio": 0.5})


@pytest.mark.smoke
def test_a_misspelt_setting():
    pruner: Any = PyramidTokenPruning()
    with pytest.raises(
        AttributeError, match="PyramidTokenPruning has no setting 'keep_ration': did you mean 'keep_ratio'"
    ):
        pruner.keep_ration = 0.3
    with pytest.raises(SettingError, match="'coverage_bound': did you mean 'coverage_bounds'"):
        pruner.coverage_bound = (0, 1)
    with pytest.raises(UnknownSetting, match="RandomPruning has no setting 'coverage', only .*keep_ratio, .*, seed"):
        RandomPruning().coverage = 0.5
    assert not hasattr(pruner, "keep_ration")


def test_what_may_be_set_besides_settings():
    class Counting(RandomPruning):
        calls = 0

        def select(self, image: Any) -> Any:
            self.seen = [*getattr(self, "seen", []), image]

    pruner: Any = Counting()
    pruner.calls += 1
    pruner._mine = 1
    pruner.select(7)
    pruner.seen = []
    assert (pruner.calls, pruner._mine, pruner.seen, Between().table) == (1, 1, [], [0, 1, 2, 3, 4])
    with pytest.raises(UnknownSetting, match="Counting has no setting 'sean'"):
        pruner.sean = []


@pytest.mark.parametrize("decorated", [True, False])
def test_a_default_that_dataclass_does_not_see(decorated):
    """Python would go on with keep_ratio 0.5 without a word."""
    if decorated:

        @dataclass(kw_only=True)
        class Mine(RandomPruning):
            keep_ratio = 0.1
    else:

        class Mine(RandomPruning):  # type: ignore[no-redef]
            keep_ratio: float = 0.1

    with pytest.raises(MethodError, match=r"Mine\.keep_ratio .* would be ignored: write `keep_ratio: <type> = ...`"):
        Mine()


def test_a_setting_is_not_deleted():
    pruner = PyramidTokenPruning(keep_ratio=0.25)
    with pytest.raises(SettingError, match="keep_ratio cannot be deleted"):
        del pruner.keep_ratio
    pruner._more = 1
    del pruner._more
    assert pruner.keep_ratio == 0.25


@pytest.mark.smoke
@torch.no_grad()
def test_an_attached_pruner_is_frozen():
    model, other, pruner = tiny_internvl(), tiny_internvl(), PyramidTokenPruning(keep_ratio=0.25)
    message = "keep_ratio cannot be changed while the pruner is attached: detach it first"

    def refused() -> None:
        for value in (0.5, 0.25, "nonsense"):
            with pytest.raises(AttachError, match=message):
                pruner.keep_ratio = value
        with pytest.raises(AttachError, match="layer cannot be deleted while"):
            del pruner.layer
        assert pruner.keep_ratio == 0.25

    with pruner(model):
        refused()
        with pruner(model):
            refused()
        refused()
        twin = replace(pruner, keep_ratio=0.5)
        for free in (twin, copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))):
            free.keep_ratio = 0.75
        model(**batch(prompt([5, 6], 5, [7, 8, 9])))
    assert pruner.report.visual_tokens == (20, 5)
    pruner.keep_ratio = 0.5

    pruner.keep_ratio = 0.25
    pruner.attach(model)
    pruner.attach(other)
    refused()
    pruner.detach()
    pruner.detach()
    pruner.keep_ratio = 0.5
    assert pruner._in_use == 0


def test_it_is_free_again_after_an_exception_and_after_a_refused_attach():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    with suppress(ArithmeticError), pruner(model):
        raise ArithmeticError
    pruner.layer = 9
    with pytest.raises(ValueError, match="layer must be below"):
        pruner.attach(model)
    pruner.layer = 1
    with RandomPruning()(model), pytest.raises(AttachError, match="already"):
        pruner.attach(model)
    pruner.layer = 2


def test_needs_that_are_no_evidence():
    class Wrong(TokenPruner):
        names: Any = frozenset({"token_feature", "encoder_attention"})

        @property
        def needs(self) -> Any:
            return self.names

    pruner = Wrong()
    with pytest.raises(
        MethodError,
        match=r"Wrong\.needs names unknown evidence: 'token_feature' \(did you mean .*'token_features'.*\); there are "
        "region_features, .*hidden_states$",
    ):
        pruner.check_needs()
    for names in ("pixels", ["pixels"], None):
        pruner.names = names
        with pytest.raises(MethodError, match=r"Wrong\.needs must be a set of names, got"):
            pruner.check_needs()
    for names in ({"layout"}, {"stage"}, {3}):
        pruner.names = names
        with pytest.raises(MethodError, match=r"Wrong\.needs names unknown evidence"):
            pruner.check_needs()


@pytest.mark.smoke
@pytest.mark.parametrize("method", METHODS.values())
def test_the_packages_methods_need_what_there_is(method):
    method().check_needs()
    for token in TOKEN_SCORES.names:
        for instruction in INSTRUCTION_SCORES.names:
            PyramidTokenPruning(token=token, instruction=instruction).check_needs()


def test_what_differs_from_the_defaults():
    assert PyramidTokenPruning().differing() == {}
    pruner = PyramidTokenPruning(keep_ratio=0.25, tiles="salient", alpha=0.6)  # the last as it is anyway
    assert pruner.differing() == {"tiles": "salient", "keep_ratio": 0.25}
    assert pruner.differing(EncoderSettings) == {"tiles": "salient"}

    @dataclass(kw_only=True)
    class Salient(PyramidTokenPruning):
        tiles: str | int = "salient"

    assert Salient().differing() == {}, "its own default"
    assert Salient().differing(EncoderSettings) == {"tiles": "salient"}, "not the default of every method"
