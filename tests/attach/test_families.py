"""Every family against the stock model: one table, tests/zoo, whose inputs the families' own processors make."""

from __future__ import annotations

import inspect
from functools import lru_cache

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.families import FAMILIES, family_of
from tests.oracle import blocked, region_numbers, slow_ptp
from tests.zoo import ZOO

FEW = ["one picture", "batch", "batch of several pictures"]
ALL = [(name, prompt) for name, specimen in ZOO.items() for prompt in specimen.prompts]
CASES = [(name, prompt) for name in ZOO for prompt in FEW]
WINDOW = 3  # tokens a side, for pictures of at most 40 tokens


@lru_cache
def model_of(name, attention="sdpa"):
    return ZOO[name].build(attention=attention)


@lru_cache
def inputs_of(name, prompt, side="left"):
    return ZOO[name].inputs(ZOO[name].prompts[prompt], side)


def dropped_of(report, inputs):
    return inputs["attention_mask"].bool() & ~report.kept_mask


def test_every_family_is_in_the_table():
    assert {family.model_class for family in FAMILIES.values()} == {type(model_of(name)).__name__ for name in ZOO}
    for name in ZOO:
        family = family_of(model_of(name))
        assert {"tiles", "region", "token"} <= set(family.stages)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(("name", "prompt"), CASES)
@torch.no_grad()
def test_ratio_one_is_bit_identical(name, prompt, layer, attention):
    model, inputs = model_of(name, attention), inputs_of(name, prompt)
    stock, stock_tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=5)
    pruner = PyramidTokenPruning(keep_ratio=1, layer=layer, window=WINDOW)
    with pruner(model):
        assert torch.equal(model(**inputs).logits, stock)
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), stock_tokens)
    before, after = pruner.report.visual_tokens
    assert before == after > 0


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize(("name", "prompt"), ALL)
def test_kept_tokens_are_those_of_the_slow_method(name, prompt, layer):
    model, inputs = model_of(name), inputs_of(name, prompt)
    for settings in ({"keep_ratio": 0.5}, {"keep_ratio": 0.2, "alpha": 0.8, "temperature": 0.5}):
        pruner = PyramidTokenPruning(layer=layer, window=WINDOW, **settings)
        with pruner(model), torch.no_grad():
            model(**inputs)
        kept = [image.kept.tolist() for image in pruner.report.images]
        assert kept == slow_ptp(ZOO[name], model, inputs, layer=layer, window=WINDOW, **settings)
        for image in pruner.report.images:
            assert len(image.kept) == max(1, round(settings["keep_ratio"] * image.num_tokens))


@pytest.mark.parametrize(("name", "prompt"), ALL)
@torch.no_grad()
def test_regions_are_those_of_the_processor(name, prompt):
    specimen, model, inputs = ZOO[name], model_of(name), inputs_of(name, prompt)
    pruner = PyramidTokenPruning(window=WINDOW)
    with pruner(model):
        model(**inputs)
    images = pruner.report.images
    assert [image.sample for image in images] == [truth.sample for truth in inputs.layout]
    numbers = region_numbers(specimen, model, inputs, WINDOW)
    for image, truth, mine in zip(images, inputs.layout, numbers, strict=True):
        prunable = [number for number in mine if number >= 0]
        assert image.num_tokens == len(prunable)
        regions = {number: [k for k, other in enumerate(prunable) if other == number] for number in sorted({*prunable})}
        assert [region.indices for region in image.regions] == list(regions.values())
        for region in image.regions:
            assert (region.start, region.stop) == (region.indices[0], region.indices[-1] + 1)
            assert region.grid[0] * region.grid[1] == len(region.indices)
            assert region.budget == len(set(region.indices) & set(image.kept.tolist()))
        if specimen.native:
            continue
        assert [region.is_thumbnail for region in image.regions] == [n == truth.thumbnail for n in regions]
        tiles = [n - (truth.thumbnail == 0) for n in regions if n != truth.thumbnail]
        places = [(region.row, region.column) for region in image.regions if not region.is_thumbnail]
        assert places == [divmod(tile, truth.grid[1]) for tile in tiles]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("name", "prompt"), CASES)
@torch.no_grad()
def test_logits_are_those_of_the_blocked_stock_model(name, prompt, layer, attention, side):
    model, inputs = model_of(name, attention), inputs_of(name, prompt, side)
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, window=WINDOW)
    with pruner(model):
        pruned = model(**inputs).logits
    kept, dropped = pruner.report.kept_mask, dropped_of(pruner.report, inputs)
    with blocked(model, dropped, layer, inputs["attention_mask"]):
        stock = model(**inputs).logits
    assert (pruned - stock)[kept].abs().max() <= 5e-5
    assert (pruned - model(**inputs).logits)[kept].abs().max() > 1e-3, "the oracle would not notice"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(("name", "prompt"), ALL)
@torch.no_grad()
def test_generated_tokens_are_those_of_the_blocked_stock_model(name, prompt, layer, attention):
    model, inputs = model_of(name, attention), inputs_of(name, prompt)
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, window=WINDOW)
    with pruner(model):
        pruned = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True, output_logits=True)
    with blocked(model, dropped_of(pruner.report, inputs), layer, inputs["attention_mask"]):
        stock = model.generate(
            **inputs, max_new_tokens=6, use_cache=False, return_dict_in_generate=True, output_logits=True
        )
    assert torch.equal(pruned.sequences, stock.sequences)
    assert (torch.stack(pruned.logits) - torch.stack(stock.logits)).abs().max() <= 1e-4
    held = {layer.keys.shape[2] for layer in pruned.past_key_values.layers}
    assert held == {max(after for _, after in pruner.report.sequence_length) + 5}, "every layer's cache is cut alike"
