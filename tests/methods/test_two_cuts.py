"""When PTP drops tokens twice, before which layers, and how many; what it chooses is the matrix's matter."""

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.bench.work import first_token_macs
from ptprune.budget import allocate
from ptprune.errors import Refused, SettingError
from ptprune.methods import METHODS
from ptprune.scores import INSTRUCTION_SCORES
from ptprune.scores.region import region_weights
from ptprune.shapes import SHAPES
from tests.zoo import inputs_of, model_of

SMALL = {"keep_ratio": 0.1}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"keep_ratio": 0.25}, (2,)),
        ({"keep_ratio": 0.24}, (2, 15)),
        ({**SMALL, "layer": 0}, (0, 14)),
        ({**SMALL, "second_layer": 8}, (2, 8)),
        ({"second_layer": 8}, (2,)),
        ({**SMALL, "layer": 27}, (27,)),  # no layer is left for another cut
        ({**SMALL, "first_ratio": 0}, (2,)),
        ({"keep_ratio": 0.5, "first_ratio": 0.6}, (2, 15)),
        ({"keep_tokens": 100}, (2, 15)),  # how many an image has, nobody knows yet
        ({"coverage": 0.9}, (2,)),
        # nothing would be known better at a second cut
        ({**SMALL, "alpha": 0}, (2,)),
        ({**SMALL, "instruction": "none"}, (2,)),
        ({**SMALL, "instruction": "embedding"}, (2,)),
    ],
)
def test_the_layers(settings, layers):
    assert PyramidTokenPruning(**settings).cut_layers(28) == layers


def test_the_paper_cuts_once():
    assert METHODS["ptp-paper"](**SMALL).cut_layers(28) == (2,)


def test_a_second_layer_that_is_none():
    with pytest.raises(SettingError, match="second_layer must be None or over layer, which is 2, got 2"):
        PyramidTokenPruning(second_layer=2)
    model = model_of("internvl")
    with (
        pytest.raises(Refused, match="must be below the model's 4 language model layers, got 9"),
        PyramidTokenPruning(**SMALL, second_layer=9)(model),
    ):
        pass


def test_without_a_cache_there_can_be_one_cut_alone():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    with PyramidTokenPruning(**SMALL, layer=0)(model), pytest.raises(Refused, match="first_ratio=0"):
        model.generate(**inputs, use_cache=False, max_new_tokens=2)
    with PyramidTokenPruning(**SMALL, layer=0, first_ratio=0)(model):
        assert model.generate(**inputs, use_cache=False, max_new_tokens=2) is not None


@pytest.mark.parametrize(
    "settings",
    [{"keep_ratio": 0.1}, {"keep_tokens": 3}, {"keep_tokens": 30}],
)
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_so_many_tokens_are_left(layer, settings):
    """Layers before the second cut see what the first one left; all caches end with what the second left."""
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    lengths = []
    hooks = [
        each.register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1]))
        for each in model.model.language_model.layers
    ]
    pruner = PyramidTokenPruning(layer=layer, **settings)
    with pruner(model):
        cache = model(**inputs).past_key_values
    for hook in hooks:
        hook.remove()
    [image] = pruner.report.images
    whole, length, second = image.num_tokens, inputs["input_ids"].shape[1], (layer + 4) // 2
    kept = pruner.num_kept(whole)
    between = length - whole + max(kept, round(0.25 * whole))
    # the hooks of this test run before the pruner's, so that a layer before which tokens go shows what is there before
    assert lengths == [length] * (layer + 1) + [between] * (second - layer) + [length - whole + kept] * (3 - second)
    assert len(image.kept) == kept
    counts = [whole, max(kept, round(0.25 * whole)), kept]
    left = [len(each) for each in image.earlier]
    assert left == (counts[1:2] if counts[1] > kept else [])  # a cut that drops nothing leaves no trace
    assert all({*image.kept.tolist()} < {*each.tolist()} for each in image.earlier)
    assert [int(mask.sum()) for mask in pruner.report.earlier_masks] == [length - whole + each for each in left]
    assert str(pruner.report).startswith(" -> ".join(map(str, [whole, *left, kept])))
    assert {each.keys.shape[2] for each in cache.layers} == {length - whole + kept}


def test_a_score_of_ones_own_that_reads_attention_is_asked_at_the_first_cut_alone(monkeypatch):
    monkeypatch.setattr(INSTRUCTION_SCORES, "_scores", dict(INSTRUCTION_SCORES._scores))
    asked = []

    @INSTRUCTION_SCORES.register("own", needs=("instruction_attention",))
    def own(image):
        """What nobody else asks."""
        asked.append(image.stage)
        return image.instruction_attention

    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    with torch.no_grad(), (pruner := PyramidTokenPruning(**SMALL, instruction="own", layer=1))(model):
        model(**inputs)
    assert asked == [0] * len(pruner.report.images)


@torch.no_grad()
def test_tiles_keep_their_weights_at_the_second_cut():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    settings = {"region": "cls-similarity", "ranking": "tile", "temperature": 0.3, "thumbnail": "region", "layer": 1}
    with (pruner := PyramidTokenPruning(keep_ratio=0.3, first_ratio=0.7, **settings))(model):
        model(**inputs)
    [image] = pruner.report.images
    weights = region_weights([region.saliency for region in image.regions], 0.3)
    sizes = allocate(weights, [len(region.indices) for region in image.regions], round(0.7 * image.num_tokens))
    budgets = allocate(weights, sizes, round(0.3 * image.num_tokens))
    assert [region.budget for region in image.regions] == budgets
    assert len(set(budgets)) > 1


def test_the_work_is_counted():
    shape = SHAPES["internvl3-1b"]
    once, twice, half = (
        first_token_macs(shape, 3328, 64, PyramidTokenPruning(**settings))
        for settings in ({**SMALL, "first_ratio": 0}, SMALL, {"keep_ratio": 0.25})
    )
    assert once < twice < half
