"""Where every token stays nothing is computed, and yet everything is checked, right and reported."""

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.conventions import cache_of, keep_cache
from ptprune.errors import Refused
from ptprune.methods import METHODS
from tests.exact import assert_untouched
from tests.zoo import ZOO, inputs_of


def nothing_computed(*args, **kwargs):
    raise AssertionError("tokens were chosen where all of them stay")


@pytest.fixture
def blind(monkeypatch):
    for method in METHODS.values():
        monkeypatch.setattr(method, "select_all", nothing_computed)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("settings", [{"keep_ratio": 1}, {"keep_tokens": 10**6}], ids=["ratio", "tokens"])
@torch.no_grad()
def test_bit_identical(blind, name, settings):
    model, inputs = ZOO[name].build(), inputs_of(name, "batch")
    assert_untouched(model, inputs, PyramidTokenPruning(**settings))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_every_method(blind, method):
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "batch")
    assert_untouched(model, inputs, METHODS[method](keep_ratio=1, **({"stages": 2} if method == "pyramiddrop" else {})))


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_the_report_is_that_of_a_pass_that_chose(name):
    model, inputs = ZOO[name].build(), inputs_of(name, "several pictures")
    alike = []
    for settings in ({"keep_ratio": 1}, {"keep_tokens": 10**6}, {"coverage": 1.0, "coverage_bounds": (1, 1)}):
        pruner = PyramidTokenPruning(**settings)
        with pruner(model), pruner.reports() as collected:
            model(**inputs)
        report = pruner.report.to_dict()
        assert collected[0].to_dict() == report
        for image in report["images"]:
            assert bool(image.pop("scores")) == ("coverage" in settings)
            for region in image["regions"]:
                region.pop("saliency")
        alike.append(report)
    assert alike[0] == alike[1] == alike[2]


@torch.no_grad()
def test_only_a_method_that_says_so_is_skipped():
    class Own(PyramidTokenPruning):
        def select(self, image):
            seen.append(image)
            return super().select(image)

    class OwnAndSure(Own):
        def keeps_all(self, num_tokens=None):
            return num_tokens is not None

    seen: list = []
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "one picture")
    for kind, calls in ((Own, 1), (OwnAndSure, 1)):
        with kind(keep_ratio=1)(model):
            model(**inputs)
        assert len(seen) == calls


@torch.no_grad()
def test_what_is_refused_is_refused_here_too():
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "one picture")
    with PyramidTokenPruning(keep_ratio=1)(model):
        with pytest.raises(Refused, match="output_attentions"):
            model(**inputs, output_attentions=True)
        with pytest.raises(Refused, match="mask of"):
            model(**{**inputs, "attention_mask": inputs["attention_mask"][:, 1:]})


@torch.no_grad()
def test_a_picture_after_a_pruned_turn():
    """The cache that an earlier pruner shortened keeps its masks and positions."""
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "one picture")
    first = PyramidTokenPruning(keep_ratio=0.4)
    with first(model):
        cache = cache_of(model(**inputs, **keep_cache(model)))
    length = inputs["input_ids"].shape[1]
    again = {**inputs, "attention_mask": torch.ones(1, 2 * length, dtype=torch.long)}
    pruner = PyramidTokenPruning(keep_ratio=1)
    with pruner(model):
        model(**again, **keep_cache(model, cache))
    assert pruner.report.visual_tokens[0] == pruner.report.visual_tokens[1]
    held = first.report.sequence_length[0][1] + length
    assert {layer.keys.shape[2] for layer in cache.layers} == {held}
