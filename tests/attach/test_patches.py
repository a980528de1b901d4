"""Patches that are dropped inside the vision tower: as if later layers could not see them, and only the best stay."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from math import ceil

import pytest
import torch
import torch.nn.functional as F

from ptprune import PyramidTokenPruning, RandomPruning
from ptprune.errors import Refused
from tests.exact import Choice, ignoring, recording
from tests.towers import tiles_of, tokens_of_patches, tower_of
from tests.zoo import ZOO, inputs_of
from tests.zoo.specimen import vision_config

CUTS = ["internvl", "llava-next", "idefics3", "smolvlm", "gemma3", "aya-vision", "cohere2-vision"]
CLS = {"internvl", "llava-next"}


@pytest.fixture(autouse=True)
def deep_towers(monkeypatch):
    def deep(model_type, **more):
        return vision_config(model_type, **{**more, "num_hidden_layers": 4})

    for module in ("internvl", "llava", "idefics", "gemma", "cohere"):
        monkeypatch.setattr(f"tests.zoo.{module}.vision_config", deep, raising=False)


def attentions(model):
    return [m for m in tower_of(model).modules() if hasattr(m, "q_proj") and hasattr(m, "k_proj")]


@torch.no_grad()
def slow_groups(name, model, tiles, layer, kept):
    """[tiles, kept], the best token groups by the whole attention map of the layer before the cut; and the patches a
    side of a group."""
    states = {}
    module = attentions(model)[layer - 1]
    handles = [
        module.q_proj.register_forward_hook(lambda m, a, out: states.update(q=out)),
        module.k_proj.register_forward_hook(lambda m, a, out: states.update(k=out)),
    ]
    tower_of(model)(pixel_values=tiles)
    for handle in handles:
        handle.remove()
    q, k = (states[x].unflatten(-1, (module.num_heads, -1)).transpose(1, 2).double() for x in "qk")
    seen = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1).mean(1)
    paid = seen[:, 0, 1:] if name in CLS else seen.mean(1)
    side = round(paid.shape[1] ** 0.5)
    block = round((paid.shape[1] / tokens_a_tile(name, model)) ** 0.5)
    pooled = F.avg_pool2d(paid.view(-1, side, side), block).flatten(1)
    return pooled.sort(dim=1, descending=True, stable=True).indices[:, :kept], block


def tokens_a_tile(name, model):
    vision = model.config.vision_config
    size, patch = (s if isinstance(s, int) else s[0] for s in (vision.image_size, vision.patch_size))
    patches = (size // patch) ** 2
    factor = {
        "internvl": lambda c: c.downsample_ratio**2,
        "idefics3": lambda c: 1 / c.scale_factor**2,
        "smolvlm": lambda c: 1 / c.scale_factor**2,
        "gemma3": lambda c: c.mm_tokens_per_image / patches,
        "aya-vision": lambda c: 1 / c.downsample_factor**2,
        "cohere2-vision": lambda c: 1 / c.downsample_factor**2,
        "llava-next": lambda c: 1,
    }[name]
    return round(patches * factor(model.config))


@contextmanager
def tower_blocked(name, model, layer, dropped):
    """The stock tower whose attention from ``layer`` on has an additive mask over the dropped patches' keys.

    dropped : BoolTensor [tiles, patches]
    """
    mask = torch.zeros(len(dropped), 1, 1, dropped.shape[1], dtype=model.dtype)
    mask = mask.masked_fill(dropped[:, None, None], -torch.inf)
    if name in CLS:
        mask = F.pad(mask, (1, 0))
    mask = mask.expand(-1, -1, mask.shape[-1], -1)
    with ExitStack() as undo:
        for module in attentions(model)[layer:]:
            hook = lambda m, args, kwargs: (args, {**kwargs, "attention_mask": mask})  # noqa: E731
            undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def case(name, prompt, attention, dtype, ratio=0.4, margin=1.25, vision_layer=2):
    """A model, inputs, the kept patches [tiles, patches] and the tokens that are missing then."""
    specimen = ZOO[name]
    model, inputs = specimen.build(attention=attention).to(dtype), specimen.inputs(specimen.prompts[prompt])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    tiles, number = tiles_of(specimen, inputs), tokens_a_tile(name, model)
    pooled = specimen.pool(model, inputs, torch.zeros(specimen.shape(model, inputs)))
    kept = []
    for image, tokens in zip(inputs.layout, pooled, strict=True):
        whole = int((~tokens.isnan()).sum())
        share = min(1, margin * max(1, round(ratio * whole)) / whole)
        kept += [ceil(share * number - 1e-9)] * image.tiles
    stays = []
    for row, count in enumerate(kept):
        groups, block = slow_groups(name, model, tiles[row : row + 1], vision_layer, count)
        own = torch.zeros(number)
        own[groups[0]] = 1
        tokens = round(number**0.5)
        stays.append(own.view(tokens, tokens).repeat_interleave(block, 0).repeat_interleave(block, 1).flatten())
    stays = torch.stack(stays).bool()
    return model, inputs, stays, tokens_of_patches(specimen, model, inputs, stays)


# float32's rounding adds up to more than 5e-5 on some processors; in float64, eager attention makes NaN of padding
@pytest.mark.parametrize(
    ("attention", "dtype", "bound"), [("sdpa", torch.float64, 1e-5), ("eager", torch.float32, 5e-5)]
)
@pytest.mark.parametrize("prompt", ["one picture", "batch of several pictures"])
@pytest.mark.parametrize("name", CUTS)
@torch.no_grad()
def test_as_if_later_layers_could_not_see_the_dropped_patches(name, prompt, attention, dtype, bound):
    model, inputs, stays, missing = case(name, prompt, attention, dtype)
    assert missing.any()
    mask = inputs["attention_mask"].bool()
    for layer in (0, 2):
        pruner = recording(PyramidTokenPruning, keep_ratio=0.4, layer=layer, vision_layer=2)
        with pruner(model):
            pruned = model(**inputs).logits
        report = pruner.report
        choice = Choice.of(pruner, model, mask, missing=missing)
        kept = report.kept_mask
        assert torch.equal(kept, mask & ~choice.stages[-1])
        assert not kept[missing].any()
        with ignoring(model, choice, mask), tower_blocked(name, model, 2, ~stays):
            stock = model(**inputs).logits
        assert (pruned - stock)[kept].abs().max() <= bound
        with ignoring(model, choice, mask):
            other = model(**inputs).logits
        assert (pruned - other)[kept].abs().max() > 50 * bound, "the oracle would not notice"
        for image in report.images:
            assert len(image.kept) == max(1, round(0.4 * image.num_tokens))
        pruner.__dict__["seen"] = []
        with pruner(model):
            answer = model.generate(**inputs, max_new_tokens=4)
        with ignoring(model, choice, mask), tower_blocked(name, model, 2, ~stays):
            assert torch.equal(answer, model.generate(**inputs, max_new_tokens=4, use_cache=False))


@torch.no_grad()
def test_a_margin_or_floor_that_keeps_all_changes_no_bit():
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "batch")
    answers = []
    for settings in ({}, {"vision_layer": 2, "vision_margin": 2.0}, {"vision_layer": 2, "vision_floor": 1.0}):
        pruner = PyramidTokenPruning(keep_ratio=0.5, **settings)
        with pruner(model):
            answers.append(model(**inputs).logits)
        assert pruner.report.encoded_tokens[0] == pruner.report.encoded_tokens[1]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_another_picture_changes_nothing():
    specimen = ZOO["internvl"]
    model, rows = specimen.build(), specimen.prompts["batch"]
    pruner = PyramidTokenPruning(keep_ratio=0.4, vision_layer=1, tiles=2)
    together, alone = [], []
    with pruner(model):
        model(**specimen.inputs(rows))
        together += [image.encoded.tolist() for image in pruner.report.images]
        for row in rows:
            model(**specimen.inputs([row]))
            alone += [image.encoded.tolist() for image in pruner.report.images]
    assert together == alone


@pytest.mark.parametrize("name", ["llava-onevision", "qwen2-vl", "glm4v"])
def test_families_without_it_are_refused_by_name(name):
    model = ZOO[name].build()
    with pytest.raises(Refused, match=f"vision_layer.*{name}"):
        RandomPruning(vision_layer=1).attach(model)


def test_a_layer_behind_the_features_is_refused():
    with pytest.raises(Refused, match="vision_layer must be at most 3"):
        RandomPruning(vision_layer=4).attach(ZOO["internvl"].build())
    with pytest.raises(Refused, match="vision_layer must be at most 2"):
        RandomPruning(vision_layer=3).attach(ZOO["llava-next"].build())


@torch.no_grad()
def test_tokens_stand_in_their_tiles_where_they_stood_before_others_were_left_out():
    """InternVL's tokens are numbered tile by tile, and row by row in each."""
    model, inputs = ZOO["internvl"].build(), inputs_of("internvl", "one picture")
    pruner = recording(PyramidTokenPruning, tiles=2, vision_layer=1, keep_ratio=0.2, first_ratio=0)
    with pruner(model):
        model(**inputs)
    [(image, _)], [report] = pruner.seen, pruner.report.images
    size = image.layout.regions[0].num_tokens
    assert image.layout.num_tokens < len(image.layout.regions) * size, "or there are no gaps"
    assert image.layout.cells_on_host().tolist() == (report.encoded % size).tolist()
