"""The work of a prompt, against ``ptprune.cost`` where that can count it, and against layers added up one by one."""

import pytest

from ptprune import PyramidTokenPruning
from ptprune.bench.work import first_token_macs, share_of_unpruned
from ptprune.cost import Prompt, attention_macs, linear_macs, pruned_cost, unpruned_cost
from ptprune.methods import METHODS
from ptprune.shapes import SHAPES

SHAPE = SHAPES["internvl3-1b"]
VISUAL, TEXT = 13 * SHAPE.tile_tokens, 48


def test_it_is_what_cost_counts():
    prompt = Prompt(12, TEXT)
    assert first_token_macs(SHAPE, VISUAL, TEXT) == unpruned_cost(SHAPE, prompt).first_token
    for layer in (0, 2, 5):
        pruner = PyramidTokenPruning(keep_ratio=0.3, layer=layer)
        assert first_token_macs(SHAPE, VISUAL, TEXT, pruner) == pruned_cost(SHAPE, prompt, 0.3, layer).first_token
    random = pruned_cost(SHAPE, prompt, 0.3, 2, instruction=0, patch_rows=0).first_token
    assert first_token_macs(SHAPE, VISUAL, TEXT, METHODS["random"](keep_ratio=0.3)) == random
    last = pruned_cost(SHAPE, prompt, 0.3, 2, instruction=1, patch_rows=0).first_token
    assert first_token_macs(SHAPE, VISUAL, TEXT, METHODS["fastv"](keep_ratio=0.3)) == last
    assert first_token_macs(SHAPE, VISUAL, TEXT, METHODS["fastv"](keep_ratio=1)) == first_token_macs(
        SHAPE, VISUAL, TEXT
    )


@pytest.mark.parametrize(("method", "cuts"), [("pyramiddrop", (2, 9, 16)), ("tops", (0, 10, 14))])
def test_every_stage_counts(method, cuts):
    pruner = METHODS[method](keep_ratio=0.1)
    assert pruner.cut_layers(24) == cuts
    lengths = []
    for layer in range(24):
        passed = sum(layer >= cut for cut in cuts)
        lengths.append((pruner.num_after(passed - 1, VISUAL) if passed else VISUAL) + TEXT)
    layers = sum(n * linear_macs(SHAPE.text) + attention_macs(SHAPE.text, n, n) for n in lengths)
    no_layers = unpruned_cost(SHAPE, Prompt(12, TEXT))
    least = layers + no_layers.vision + no_layers.projector + no_layers.lm_head
    assert least < first_token_macs(SHAPE, VISUAL, TEXT, pruner) < 1.01 * least
    once = METHODS["fastv"](keep_ratio=0.1, layer=cuts[0])
    assert first_token_macs(SHAPE, VISUAL, TEXT, pruner) > first_token_macs(SHAPE, VISUAL, TEXT, once)


def test_share_of_the_unpruned_model():
    assert share_of_unpruned(SHAPE, [(VISUAL, VISUAL, TEXT)]) == 1
    assert share_of_unpruned(SHAPE, [(VISUAL, SHAPE.tile_tokens, TEXT)]) < 0.1
    pruner = METHODS["fastv"](keep_ratio=0.5)
    both = share_of_unpruned(SHAPE, [(VISUAL, VISUAL, TEXT), (256, 256, TEXT)], pruner)
    assert share_of_unpruned(SHAPE, [(VISUAL, VISUAL, TEXT)], pruner) < both < 1
