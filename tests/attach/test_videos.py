"""Videos stay whole, with a warning, where the model has tokens of their own for them; pictures beside them are pruned.

Video processors need torchvision, so these inputs are made by hand.
"""

from __future__ import annotations

import pytest
import torch

from ptprune import PyramidTokenPruning
from tests.oracle import blocked
from tests.zoo import ZOO, inputs_of

FRAMES = {"llava-onevision": 2, "qwen2-vl": 2, "qwen2.5-vl": 2, "qwen3-vl": 1, "glm4v": 1}
QUESTION = ("tell me what you see", [])


def with_video(name, model, inputs):
    """``inputs`` of one row with a video of 4x4 patches a frame in front."""
    specimen, frames = ZOO[name], FRAMES[name]
    generator = torch.Generator().manual_seed(7)
    inputs = dict(inputs)
    if name == "llava-onevision":
        tokens = frames * 4 + 1  # 2x2 a frame, and one newline
        inputs["pixel_values_videos"] = torch.randn(1, frames, 3, 32, 32, generator=generator)
    else:
        tokens = frames * 4
        inputs["pixel_values_videos"] = torch.randn(frames * 16, 3 * 2 * 8 * 8, generator=generator)
        inputs["video_grid_thw"] = torch.tensor([[frames, 4, 4]])
    token = model.config.image_token_id if name == "glm4v" else model.config.video_token_id
    video = [5, *[token] * tokens, 6]
    added = {"input_ids": video, "attention_mask": [1] * len(video)}
    if "mm_token_type_ids" in inputs or specimen.native:
        inputs.setdefault("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
        added["mm_token_type_ids"] = [0, *[2] * tokens, 0]
    for key, values in added.items():
        inputs[key] = torch.cat([torch.tensor([values]), inputs[key]], 1)
    return inputs


@pytest.mark.parametrize("name", FRAMES)
@torch.no_grad()
def test_a_video_alone_passes_untouched(name):
    model = ZOO[name].build()
    inputs = with_video(name, model, ZOO[name].inputs([QUESTION]))
    stock = model.generate(**inputs, max_new_tokens=5)
    pruner = PyramidTokenPruning(keep_ratio=0.4)
    with pruner(model), pytest.warns(UserWarning, match=f"videos are not pruned in {name}"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), stock)
    assert pruner.report is None


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", [name for name in FRAMES if name != "glm4v"])  # stock takes pictures or videos there
@torch.no_grad()
def test_a_picture_beside_a_video_is_pruned(name, layer):
    model = ZOO[name].build()
    inputs = with_video(name, model, ZOO[name].inputs(ZOO[name].prompts["one picture"]))
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, window=3)
    with pruner(model), pytest.warns(UserWarning, match="videos are not pruned"):
        pruned = model.generate(**inputs, max_new_tokens=5)
    dropped = ~pruner.report.kept_mask
    assert dropped.any()
    assert not dropped[inputs["input_ids"] != model.config.image_token_id].any()
    with blocked(model, dropped, layer, inputs["attention_mask"]):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5, use_cache=False), pruned)


@torch.no_grad()
def test_a_video_is_no_question():
    """The text before a video that stands last asks, the video's own tokens do not."""
    name = "llava-onevision"
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(ZOO[name].prompts["no text after"])
    last = with_video(name, model, inputs)
    video = last["input_ids"].shape[1] - inputs["input_ids"].shape[1] - 1
    for key in ("input_ids", "attention_mask"):
        last[key] = last[key][:, 1:].roll(-video, 1)[:, :-1]
    scores = []
    for call in (inputs, last):
        pruner = PyramidTokenPruning()
        with pruner(model):
            model(**call)
        scores.append(pruner.report.images[0].scores["instruction"])
    torch.testing.assert_close(*scores)


@torch.no_grad()
def test_a_picture_after_a_video_is_pruned():
    name = "llava-onevision"
    model, inputs = ZOO[name].build(), inputs_of(name, "one picture")
    video = with_video(name, model, ZOO[name].inputs([("tell me what you see", [])]))
    pruner = PyramidTokenPruning(keep_ratio=0.4)
    with pruner(model):
        expected = model.generate(**inputs, max_new_tokens=4)
        with pytest.warns(UserWarning, match="videos are not pruned"):
            model.generate(**video, max_new_tokens=2)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4), expected)
