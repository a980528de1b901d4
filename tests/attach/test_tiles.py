"""Tiles that are left out are never encoded, and all else is as the stock model has it that ignores their tokens."""

from __future__ import annotations

import pytest
import torch

from ptprune import PyramidTokenPruning
from tests.exact import assert_exact, recording
from tests.towers import missing
from tests.zoo import ZOO, inputs_of

TILED = [name for name, specimen in ZOO.items() if not specimen.native]
PROMPTS = ["one picture", "small picture", "several pictures", "batch", "batch of several pictures", "no text after"]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_exact(name, prompt, layer):
    model, inputs = ZOO[name].build(), inputs_of(name, prompt)
    pruner = recording(PyramidTokenPruning, layer=layer, tiles=1, keep_ratio=0.2)
    gone = missing(ZOO[name], model, inputs, pruner)
    several = any(image.tiles > 2 for image in inputs.layout)
    assert several == bool(gone.any())
    report = assert_exact(model, inputs, pruner, missing=gone)
    assert not report.kept_mask[gone].any()
    before, encoded = report.encoded_tokens
    assert before - encoded == int(gone.sum())
    for image in report.images:
        assert len(image.kept) == min(max(1, round(0.2 * image.num_tokens)), image.encoded_tokens)
        assert image.encoded_tiles == min(len(image.regions), 2)
