"""Prompts longer than a sliding window, and the caches of such models."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlavaNextConfig, LlavaNextForConditionalGeneration

from ptprune import PyramidTokenPruning
from ptprune.attach.windows import restrict
from tests.exact import assert_exact, recording
from tests.oracle import blocked
from tests.versions import needs_transformers
from tests.zoo import SLIDING, ZOO, inputs_of, model_of
from tests.zoo.pictures import picture
from tests.zoo.specimen import finish, text_config


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_without_a_stock_mask_is_the_one_with_a_mask(window):
    columns = torch.tensor([[0, 1, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7]])
    valid = torch.tensor([[True] * 6, [False] + [True] * 5])
    queries = columns[:, -2:]
    causal = queries[:, None, :, None] >= columns[:, None, None]
    given = restrict(causal & valid[:, None, None], window, queries, columns, valid, "sdpa")
    made = restrict(None, window, queries, columns, valid, "sdpa")
    distance = queries[:, None, :, None] - columns[:, None, None]
    assert torch.equal(made, causal & (distance < window) & valid[:, None, None])
    assert torch.equal(made, given)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_a_language_model_whose_every_layer_slides(layer):
    specimen = ZOO["llava-next"]
    template = model_of("llava-next").config
    config = LlavaNextConfig(
        vision_config=template.vision_config,
        text_config=text_config("mistral", 4, sliding_window=12),
        image_token_index=template.image_token_id,
        image_grid_pinpoints=template.image_grid_pinpoints,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = finish(LlavaNextForConditionalGeneration, config, torch.float32, "sdpa", 0, [template.image_token_id])
    inputs = specimen.inputs(specimen.prompts["one picture"])
    assert_exact(model, inputs, recording(PyramidTokenPruning, keep_ratio=0.4, layer=layer))


continues_text = needs_transformers("5.23", "Gemma3's picture after a turn of text has other logits with a cache")


@pytest.mark.parametrize("keep_ratio", [1, 0.4])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("name", "window"),
    [
        pytest.param(name, size, marks=continues_text if name == "gemma3" else ())
        for name in ZOO
        for size in ((None, 20, 60) if name in SLIDING else (None,))
        if not ZOO[name].native
    ],
)
@torch.no_grad()
def test_a_picture_after_a_first_turn_of_text(name, window, layer, keep_ratio):
    specimen = ZOO[name]
    model = model_of(name) if window is None else specimen.build(sliding_window=window)
    first = specimen.inputs([("tell me what you see", [])])
    second = specimen.inputs([("look at <image> what is the red thing", [picture(90, 60)])])
    start = first["input_ids"].shape[1]
    whole = dict(second)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if key in second:
            whole[key] = torch.cat([first.get(key, torch.zeros_like(first["input_ids"])), second[key]], 1)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    pruner = PyramidTokenPruning(keep_ratio=keep_ratio, layer=layer)
    with pruner(model):
        cache = model(**first, past_key_values=DynamicCache(config=model.config)).past_key_values
        pruned = model.generate(**whole, past_key_values=cache, **options)
        kept, mask = pruner.report.images[0].kept.tolist(), pruner.report.kept_mask
        model(**whole)
    assert kept == pruner.report.images[0].kept.tolist(), "the same picture and question, the same choice"
    assert mask.tolist() == pruner.report.kept_mask[:, start:].tolist()
    with blocked(model, ~pruner.report.kept_mask, layer, whole["attention_mask"]):
        stock = model.generate(**whole, use_cache=False, **options)
    assert torch.equal(pruned.sequences, stock.sequences)
    assert (torch.stack(pruned.logits) - torch.stack(stock.logits)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["gemma3", "cohere2-vision", "internvl"])
@torch.no_grad()
def test_a_cache_is_used_again_after_reset(name):
    model = ZOO[name].build(**({"sliding_window": 20} if name in SLIDING else {}))
    inputs = inputs_of(name, "one picture")
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        first = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True)
        first.past_key_values.reset()
        assert torch.equal(
            model.generate(**inputs, max_new_tokens=6, past_key_values=first.past_key_values), first.sequences
        )


@pytest.mark.parametrize("keep_ratio", [1, 0.4])
@pytest.mark.parametrize("name", SLIDING)
@torch.no_grad()
def test_no_cache_is_made_where_none_is_wanted(name, keep_ratio):
    model, inputs = ZOO[name].build(sliding_window=20), inputs_of(name, "one picture")
    with PyramidTokenPruning(keep_ratio=keep_ratio)(model):
        assert model(**inputs, use_cache=False).past_key_values is None


@torch.no_grad()
def test_columns_move_with_the_rows_of_a_cache():
    model, inputs = ZOO["gemma3"].build(sliding_window=20), inputs_of("gemma3", "batch")
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        cache = model(**inputs).past_key_values
    columns = cache.layers[0].columns
    assert not torch.equal(columns[0], columns[1])
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.layers[0].columns, columns[[1, 0]])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.layers[0].columns, columns[[1, 1, 0, 0]])
    cache.batch_select_indices(torch.tensor([2]))
    assert torch.equal(cache.layers[0].columns, columns[[0]])
    cache.layers[0].crop(-1)
    assert torch.equal(cache.layers[0].columns, columns[[0], :-1])
    cache.layers[1].reset()
    assert (cache.layers[1].floor, cache.layers[1].columns.shape[1]) == (0, 0)


@pytest.mark.parametrize("window", range(20, 41, 2))
@torch.no_grad()
def test_decoding_where_less_is_held_than_the_window_and_more_was_seen(window):
    model, inputs = ZOO["gemma3"].build(sliding_window=window), inputs_of("gemma3", "one picture")
    assert_exact(model, inputs, recording(PyramidTokenPruning, keep_ratio=0.1), 8)
