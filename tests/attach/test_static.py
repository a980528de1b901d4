"""Static caches: what is kept stands at the front of the buffers, and decoding goes on as over a dynamic cache."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ptprune import PyramidTokenPruning
from ptprune.attach.static import PrunedStaticLayer
from ptprune.conventions import keep_cache
from ptprune.errors import AttachError, Refused
from tests.exact import assert_exact, assert_exact_in_a_second_turn, recording
from tests.internvl import batch, prompt, tiny_internvl
from tests.versions import repeats_tiles
from tests.zoo import ZOO, inputs_of, model_of
from tests.zoo.pictures import picture

STATIC = {"cache_implementation": "static", "disable_compile": True}
ONE = batch(prompt([5, 6], 5, [7, 8, 9]))
RAGGED = batch(prompt([5, 6], 5, [7, 8, 9]), prompt([5], 2, [7]))


@pytest.fixture
def model():
    return tiny_internvl()


def static_cache(model, length=64):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=length)


def held_at(cache):
    """Addresses of all that a compiled graph knows by its address."""
    tensors = [(layer.keys, layer.values, layer.cumulative_length) for layer in cache.layers]
    return [tensor.data_ptr() for three in tensors for tensor in three]


@torch.no_grad()
def decode(model, inputs, cache=None, steps=5, step=None, mask=True):
    """Tokens that a hand-written loop chooses, and the cache."""
    out = model(**inputs, **keep_cache(model, cache))
    cache, logits, tokens = out.past_key_values, out.logits, []
    mask = inputs["attention_mask"] if mask else None
    for number in range(steps):
        tokens.append(logits[:, -1:].argmax(-1))
        more = {"position_ids": inputs["attention_mask"].sum(1, keepdim=True) + number}
        if mask is not None:
            mask = more["attention_mask"] = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits = (step or model)(input_ids=tokens[-1], **more, **keep_cache(model, cache)).logits
    return torch.cat(tokens, dim=1), cache


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("which", ["one picture", "batch"])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_generate_is_that_over_a_dynamic_cache(name, which, layer):
    model, inputs = model_of(name), inputs_of(name, which)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    with PyramidTokenPruning(keep_ratio=0.4, layer=layer)(model):
        dynamic = model.generate(**inputs, **options)
        static = model.generate(**inputs, **options, **STATIC)
    assert torch.equal(static.sequences, dynamic.sequences)
    torch.testing.assert_close(torch.stack(static.logits), torch.stack(dynamic.logits), atol=5e-5, rtol=0)
    for mine, theirs in zip(static.past_key_values.layers, dynamic.past_key_values.layers, strict=True):
        held = theirs.keys.shape[2]
        assert type(mine) is PrunedStaticLayer
        assert int(mine.cumulative_length) == held
        assert int(mine.get_seq_length()) == theirs.get_seq_length()
        torch.testing.assert_close(mine.keys[:, :, :held], theirs.keys, atol=5e-5, rtol=0)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("inputs", [ONE, RAGGED], ids=["one", "ragged"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_generate_is_exact(inputs, layer, attention):
    model = tiny_internvl(attention=attention)  # its own: buffers are never shorter than the longest before
    assert_exact(model, inputs, recording(PyramidTokenPruning, keep_ratio=0.4, layer=layer), **STATIC)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=["3", "2"])
@repeats_tiles
@torch.no_grad()
def test_beams_and_several_returns(model, options):
    assert_exact(model, RAGGED, recording(PyramidTokenPruning, keep_ratio=0.4), **STATIC, **options)


@pytest.mark.skipif(not hasattr(StaticLayer, "crop"), reason="transformers: static caches cannot be cropped yet")
@torch.no_grad()
def test_drafts_are_taken_back(model):
    inputs = batch(prompt([5, 6, 7, 8, 5, 6, 7], 5, [5, 6, 7, 8, 5, 6]))
    stock = "as it is"
    try:
        model.generate(**inputs, max_new_tokens=8, prompt_lookup_num_tokens=2, max_cache_len=60, **STATIC)
    except Exception as error:
        stock = repr(error)
    print("STOCK", stock)
    assert_exact(
        model,
        inputs,
        recording(PyramidTokenPruning, keep_ratio=0.4),
        prompt_lookup_num_tokens=2,
        max_cache_len=60,
        **STATIC,
    )


@pytest.mark.parametrize("pictures", [[], [picture(90, 60)]], ids=["text", "picture"])
@pytest.mark.parametrize("keep_ratio", [1, 0.4])
@pytest.mark.parametrize("name", ["internvl", "llava-next"])
@torch.no_grad()
def test_a_second_turn(name, keep_ratio, pictures):
    specimen, model = ZOO[name], ZOO[name].build()
    row = ("look at <image> again" if pictures else "and what else", pictures)
    pruner = recording(PyramidTokenPruning, keep_ratio=keep_ratio)
    first = inputs_of(name, "one picture")
    assert_exact_in_a_second_turn(specimen, model, first, pruner, row, max_cache_len=200, **STATIC)


@pytest.mark.parametrize("name", ["internvl", "qwen2-vl", "gemma3"])
@torch.no_grad()
def test_keeping_everything_is_the_stock_model(name):
    model, inputs = ZOO[name].build(), inputs_of(name, "batch")
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, **STATIC}
    stock = model.generate(**inputs, **options)
    with PyramidTokenPruning(keep_ratio=1)(model):
        kept = model.generate(**inputs, **options)
    assert torch.equal(kept.sequences, stock.sequences)
    torch.testing.assert_close(torch.stack(kept.logits), torch.stack(stock.logits), atol=5e-5, rtol=0)
    real = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1).bool()
    for mine, theirs in zip(kept.past_key_values.layers, stock.past_key_values.layers, strict=True):
        assert type(mine) is type(theirs)
        assert mine.keys.shape == theirs.keys.shape
        assert int(mine.get_seq_length()) == int(theirs.get_seq_length())
        one, other = (layer.keys.transpose(1, 2)[real] for layer in (mine, theirs))  # padding holds what it likes
        torch.testing.assert_close(one, other, atol=5e-5, rtol=0)


@torch.no_grad()
def test_buffers_are_as_long_as_the_pruned_call_needs_and_never_shorter_than_before(model):
    def length(inputs, **options):
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, **STATIC, **options)
        return out.past_key_values.layers[0].keys.shape[2]

    small, text = batch(prompt([5, 6], 2, [7, 8, 9])), batch(prompt([5, 6, 7]))
    full = ONE["input_ids"].shape[1] + 3
    assert length(ONE) == full
    pruner = PyramidTokenPruning(keep_ratio=0.5)
    with pruner(model):
        before, after = pruned = length(ONE), length(small)
        (_, kept), *_ = pruner.report.sequence_length
        assert kept + 3 < before < full
        assert pruned == (full - 10, full - 10)
        assert length(ONE, max_cache_len=100) == 100
    assert after == before
    assert length(text) == 100, "the stock memory of lengths is as if the pruner were not there"


@torch.no_grad()
@pytest.mark.parametrize("inputs", [ONE, RAGGED], ids=["one", "ragged"])
def test_a_loop_by_hand_over_the_callers_cache(model, inputs):
    cache = static_cache(model)
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        expected, dynamic = decode(model, inputs)
        assert torch.equal(decode(model, inputs, cache)[0], expected)
        addresses = held_at(cache)
        cache.reset()
        assert torch.equal(decode(model, inputs, cache)[0], expected), "a cache is used again after reset()"
        assert held_at(cache) == addresses
    assert {layer.keys.shape[2] for layer in cache.layers} == {64}
    assert {int(layer.cumulative_length) for layer in cache.layers} == {dynamic.layers[0].keys.shape[2]}


@torch.no_grad()
def test_going_on_without_the_pruner(model):
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        expected, _ = decode(model, ONE)
        one = model(**ONE, **keep_cache(model, static_cache(model)))
        ragged = model(**RAGGED, **keep_cache(model, static_cache(model)))
    token = one.logits[:, -1:].argmax(-1)
    logits = model(input_ids=token, **keep_cache(model, one.past_key_values)).logits
    assert torch.equal(logits[:, -1].argmax(-1), expected[:, 1])
    more = torch.nn.functional.pad(RAGGED["attention_mask"], (0, 1), value=1)
    with pytest.raises(AttachError, match="continue it with the pruner attached"):
        model(input_ids=token.expand(2, 1), attention_mask=more, **keep_cache(model, ragged.past_key_values))


@torch.no_grad()
def test_the_rows_and_the_end_of_a_cache(model):
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        expected, cache = decode(model, ONE, static_cache(model))
        ragged = decode(model, RAGGED, static_cache(model))[1]
        cache.crop(-2)
        cache.crop(0)
        logits = model(input_ids=expected[:, -2:], **keep_cache(model, cache)).logits
        assert torch.equal(logits[:, 0].argmax(-1), expected[:, -1])
        with pytest.raises(Refused, match="only the last 9 came after"):
            cache.crop(-20)
        columns = ragged.layers[0].columns
        ragged.reorder_cache(torch.tensor([1, 0]))
        assert torch.equal(ragged.layers[0].columns, columns[[1, 0]])
        assert not torch.equal(columns[0], columns[1])


@torch.no_grad()
def test_an_exception_leaves_the_cache_as_it_was(model):
    cache = static_cache(model)
    layers = list(cache.layers)
    hook = model.model.language_model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
    with PyramidTokenPruning()(model):
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
            with pytest.raises(ZeroDivisionError):
                call(**ONE, **keep_cache(model, cache))
            assert all(one is other for one, other in zip(cache.layers, layers, strict=True))
            assert not cache.is_initialized
        hook.remove()
        assert torch.equal(decode(model, ONE, cache)[0], decode(model, ONE)[0])


def test_a_wrapper_that_rests_does_not_keep_the_model():
    model = tiny_internvl()
    with PyramidTokenPruning()(model):
        pass
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def windowed(window):
    return ZOO["gemma3"].build(sliding_window=window), inputs_of("gemma3", "one picture")


@torch.no_grad()
def test_a_window_that_nothing_leaves():
    model, inputs = windowed(200)
    assert_exact(model, inputs, recording(PyramidTokenPruning, keep_ratio=0.4), **STATIC)


@torch.no_grad()
def test_a_window_that_something_would_leave(model):
    model, inputs = windowed(60)
    length = inputs["input_ids"].shape[1]
    assert length < 60
    ran = []
    model.model.language_model.register_forward_pre_hook(lambda *_: ran.append(1))
    with PyramidTokenPruning(keep_ratio=0.4)(model):
        with pytest.raises(Refused, match="reaches past a sliding window of 60"):
            model.generate(**inputs, max_new_tokens=60 - length + 5, **STATIC)
        with pytest.raises(Refused, match="reaches past a sliding window of 60"):
            model(**inputs, **keep_cache(model, static_cache(model, 60)))
        assert not ran
        tokens, cache = decode(model, inputs, static_cache(model, 59), 60 - length)
        more = {"input_ids": tokens[:, -1:], **keep_cache(model, cache)}
        with pytest.raises(Refused, match="cannot go on past a sliding window of 60 tokens to 61"):
            model(**more)
        with pytest.raises(Refused, match="cannot go on past a sliding window of 60 tokens to 61"):
            model.prepare_inputs_for_generation(**more)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"positions": "compact"}, STATIC, "positions='compact' needs a hook at every step"),
        ({}, {"cache_implementation": "offloaded_static"}, "cache_implementation='offloaded_static'"),
        ({}, {"length": 20}, "has room for 20 tokens and holds 0: 27 more do not fit"),
        ({}, {"length": 64, "offloading": True}, "an offloaded cache"),
        ({"positions": "compact"}, {"length": 64}, "positions='compact'"),
        ({}, {"flash": True, **STATIC}, "flash_attention_2 does not take masks of static buffers"),
    ],
)
@torch.no_grad()
def test_refused_before_anything_is_computed(model, settings, options, message):
    ran = []
    for part in (model.model.vision_tower, model.model.language_model):
        part.register_forward_pre_hook(lambda *_: ran.append(1))
    options = dict(options)
    if options.pop("flash", False):
        model.config.get_text_config()._attn_implementation = "flash_attention_2"
    if (length := options.pop("length", None)) is not None:
        cache = static_cache(model, length)
        cache.offloading = options.pop("offloading", False)
        options = keep_cache(model, cache)
    with PyramidTokenPruning(**settings)(model):
        with pytest.raises(Refused, match=message):
            model.generate(**ONE, max_new_tokens=2, **options)
        if length is not None:
            with pytest.raises(Refused, match=message):
                model(**ONE, **options)
    assert not ran
