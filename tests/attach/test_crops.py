"""Which pictures of a Gemma3 prompt are crops of which: told by text and pixels, for want of anything better."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune import PyramidTokenPruning
from tests.zoo import ZOO, model_of
from tests.zoo.pictures import picture


@torch.no_grad()
def test_pictures_with_other_text_between_them_are_no_crops():
    model, specimen, whole = model_of("gemma3"), ZOO["gemma3"], picture(96, 32)
    strips = [whole.crop((32 * i, 0, 32 * i + 32, 32)) for i in range(3)]
    text = "here is <image> look at <image> then <image> and <image> what is it"
    inputs = specimen.inputs([(text, [whole, *strips])], do_pan_and_scan=False)
    pruner = PyramidTokenPruning()
    with pruner(model):
        model(**inputs)
    assert [len(image.regions) for image in pruner.report.images] == [1, 1, 1, 1]


@pytest.mark.parametrize("share", [0.4, 0.5, 0.7])
@torch.no_grad()
def test_pictures_that_somewhat_look_like_an_original_are_no_crops(share):
    whole = picture(96, 32)
    halves = [whole.crop((48 * i, 0, 48 * i + 48, 32)) for i in range(2)]
    mixed = [Image.blend(half, picture(48, 32, 9 + i), share) for i, half in enumerate(halves)]
    for pictures, regions in (([whole, *halves], [3]), ([whole, *mixed], [1, 1, 1])):
        inputs = ZOO["gemma3"].inputs([("see <image><image><image> what", pictures)], do_pan_and_scan=False)
        pruner = PyramidTokenPruning()
        with pruner(model_of("gemma3")):
            model_of("gemma3")(**inputs)
        assert [len(image.regions) for image in pruner.report.images] == regions


@pytest.mark.parametrize(("size", "regions"), [((120, 60), 3), ((60, 240), 5)])
@torch.no_grad()
def test_crops_of_the_finest_texture_are_crops(size, regions):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    pruner = PyramidTokenPruning()
    with pruner(model_of("gemma3")):
        model_of("gemma3")(**ZOO["gemma3"].inputs([("look <image> what", [noise])]))
    assert [len(image.regions) for image in pruner.report.images] == [regions]


@torch.no_grad()
def test_another_picture_behind_the_crops():
    pictures = [picture(100, 50), picture(50, 50, 1), picture(60, 120, 2)]
    inputs = ZOO["gemma3"].inputs([("look <image> <image> <image> what", pictures)])
    pruner = PyramidTokenPruning()
    with pruner(model_of("gemma3")):
        model_of("gemma3")(**inputs)
    assert (
        [len(image.regions) for image in pruner.report.images] == [truth.tiles for truth in inputs.layout] == [3, 1, 3]
    )
