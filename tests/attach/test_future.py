"""Versions of transformers to come: each change that would prune wrongly is refused, before a token is returned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.models.qwen2 import modeling_qwen2

from ptprune import PyramidTokenPruning
from ptprune.errors import BrokenPass, UnknownTransformers
from tests.attach.test_lifecycle import traces
from tests.internvl import batch, prompt, tiny_internvl
from tests.oracle import scored_vision_attention
from tests.versions import encodes_first
from tests.zoo import ZOO

INPUTS = batch(prompt([5, 6], 5, [7, 8, 9]))  # without padding there is no mask whose shape could fail to fit


class RenamedCache(modeling_qwen2.Qwen2DecoderLayer):
    def forward(self, hidden_states, attention_mask=None, position_ids=None, memory=None, position_embeddings=None):
        raise NotImplementedError


class RenamedMask(modeling_qwen2.Qwen2DecoderLayer):
    def forward(self, hidden_states, visibility=None, past_key_values=None, position_embeddings=None):
        raise NotImplementedError


class NewAttention(nn.Module):
    """Calls a kernel of its own."""

    config = object()

    def forward(self, hidden_states, past_key_values=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("change", "looked_for"),
    [
        (
            lambda layers: setattr(layers[2], "__class__", RenamedCache),
            "RenamedCache takes the cache under none of the names cache, past_key_values",
        ),
        (
            lambda layers: setattr(layers[0], "__class__", RenamedMask),
            "RenamedMask takes no argument 'attention_mask'",
        ),
        (
            lambda layers: setattr(layers[1], "self_attn", NewAttention()),
            "NewAttention does not look its attention function up in transformers' AttentionInterface",
        ),
        (lambda layers: delattr(layers[3], "self_attn"), "Qwen2DecoderLayer 3 has no attention module"),
        (lambda layers: layers.append(copy.deepcopy(layers[0])), "tells of 4 language model layers, the model has 5"),
    ],
)
def test_a_model_that_is_built_otherwise_is_refused_when_attached(change, looked_for):
    model = tiny_internvl()
    change(model.model.language_model.layers)
    before = traces(model)
    with pytest.raises(UnknownTransformers, match=looked_for) as refused:
        PyramidTokenPruning().attach(model)
    for said in (
        "InternVLForConditionalGeneration of transformers",
        "Nothing was attached",
        "Tested with transformers",
    ):
        assert said in str(refused.value)
    assert traces(model) == before


def test_a_cache_that_can_more_than_a_pruned_one_is_refused(monkeypatch):
    monkeypatch.setattr(DynamicLayer, "defragment", lambda self: None, raising=False)
    with pytest.raises(UnknownTransformers, match="DynamicLayer has an unknown method defragment"):
        PyramidTokenPruning().attach(tiny_internvl())


def test_an_option_of_generate_that_is_gone_is_noticed(monkeypatch):
    stock = GenerationConfig.__init__

    def without(self, **kwargs):
        stock(self, **kwargs)
        del self.prefill_chunk_size

    monkeypatch.setattr(GenerationConfig, "__init__", without)
    with pytest.raises(UnknownTransformers, match=r"generate\(\) has no option prefill_chunk_size"):
        PyramidTokenPruning().attach(tiny_internvl())


def test_a_window_that_the_configuration_does_not_tell_is_refused():
    model = tiny_internvl()
    model.model.language_model.layers[1].self_attn.sliding_window = 8
    with pytest.raises(UnknownTransformers, match="Qwen2Attention 1 has a sliding window of 8"):
        PyramidTokenPruning().attach(model)


# --- what no signature tells ------------------------------------------------------------------------------------------


def bypass(model):
    """The attention before the cut goes around the interface."""

    class Bypassing(modeling_qwen2.Qwen2Attention):
        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states, None

    model.model.language_model.layers[1].self_attn.__class__ = Bypassing


def bypass_in_the_encoder(model):
    module = model.model.vision_tower.encoder.layer[-1].attention
    kind = type(module)
    module.__class__ = type("Bypassing", (kind,), {"forward": lambda self, states, *args, **kwargs: (states, None)})


def twice(model):
    """The attention before the cut is computed twice."""
    stock = model.model.language_model.layers[1].self_attn

    class Twice(modeling_qwen2.Qwen2Attention):
        def forward(self, *args, **kwargs):
            cached = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
            super().forward(*args, **cached)
            return super().forward(*args, **kwargs)

    stock.__class__ = Twice


def skip_hooks(index):
    def change(model):
        class Direct(modeling_qwen2.Qwen2DecoderLayer):
            def __call__(self, *args, **kwargs):
                return self.forward(*args, **kwargs)

        model.model.language_model.layers[index].__class__ = Direct

    return change


def skip_layer(model):
    """The decoder goes on with a list of its own, of one layer fewer."""
    layers = model.model.language_model.layers
    kind = type(layers)
    layers.__class__ = type("Fewer", (kind,), {"__getitem__": _fewer, "__iter__": lambda self: iter(_some(self))})


def _some(layers):
    return [layer for name, layer in layers._modules.items() if name != "3"]


def _fewer(self, index):
    return _some(self)[index] if isinstance(index, slice) else list(self._modules.values())[index]


def longer(index):
    """A layer returns one more token than it was given."""

    def change(model):
        def lengthen(module, args, output):
            return torch.cat([output, output[:, -1:]], dim=1)

        model.model.language_model.layers[index].register_forward_hook(lengthen)

    return change


def nested(model):
    """A layer returns a tuple's worth: another dimension."""
    model.model.language_model.layers[2].register_forward_hook(lambda module, args, output: output[None])


def per_token(model):
    """The layers are given something new for each token."""

    class Weighted(modeling_qwen2.Qwen2DecoderLayer):
        pass

    for layer in model.model.language_model.layers:
        layer.__class__ = Weighted

        def add(module, args, kwargs):
            return args, {**kwargs, "token_weights": args[0].new_ones(*args[0].shape[:2], 1)}

        layer.register_forward_pre_hook(add, with_kwargs=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (bypass, "attention of layer 1 handed over its queries and keys 0 times, not once"),
        (twice, "attention of layer 1 handed over its queries and keys 2 times, not once"),
        (bypass_in_the_encoder, "the vision encoder ran, but not the attention module"),
        (skip_hooks(2), "layer 3 was called where layer 2 had to be"),
        (skip_hooks(3), "must match the size"),  # the layer itself: its rotary embeddings are not cut
        (skip_layer, "only 3 of 4 language model layers were called"),
        (longer(1), "layer 2 was given hidden states of shape"),
        (longer(2), "layer 3 was given hidden states of shape"),
        (longer(3), "the language model returned 18 hidden states, not 17"),
        (nested, "layer 3 was given hidden states of shape"),
        (per_token, "layer 2 takes token_weights for every token, which cannot be cut"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("generate", [False, True])
@torch.no_grad()
def test_a_pass_that_goes_another_way_returns_nothing(change, says, generate):
    model = tiny_internvl()
    model(**INPUTS)  # transformers installs hooks of its own at the first call
    change(model)
    before, pruner = traces(model), PyramidTokenPruning()
    with pruner(model), pytest.raises(RuntimeError, match=says) as broken:
        model.generate(**INPUTS, max_new_tokens=2) if generate else model(**INPUTS)
    assert isinstance(broken.value, BrokenPass) or "must match" in says
    assert traces(model) == before
    assert pruner.report is None


@encodes_first
@torch.no_grad()
def test_pictures_that_arrive_under_another_name_are_noticed():
    """generate() encodes them first: the model sees no pixels, and nothing that is known to hold pictures."""
    model = tiny_internvl()
    inner = type(model.model)

    class Renamed(inner):
        def __call__(self, *args, **kwargs):
            for name in ("mm_encoder_outputs", "pixel_values"):
                kwargs.pop(name, None)
            return super().__call__(*args, **kwargs)

    model.model.__class__ = Renamed
    model.model.get_image_features(INPUTS["pixel_values"], return_dict=True)
    pruner = PyramidTokenPruning()
    with pruner(model), pytest.raises(BrokenPass, match="encoded the pictures, but the model was called without them"):
        model.generate(**INPUTS, max_new_tokens=2)


@pytest.mark.parametrize("name", ["internvl", "llava-next", "qwen2-vl", "gemma3"])
@torch.no_grad()
def test_an_encoder_that_attends_twice_is_noticed(name):
    """Tokens would be ranked by sums over patches of two calls."""
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(ZOO[name].prompts["one picture"])
    attention = scored_vision_attention(model)

    def again(self, *args, **kwargs):
        kind.forward(self, *args, **kwargs)
        return kind.forward(self, *args, **kwargs)

    kind = type(attention)
    attention.__class__ = type("Twice", (kind,), {"forward": again})
    with PyramidTokenPruning()(model), pytest.raises(BrokenPass, match="patches"):
        model(**inputs)


class CopyingCache(DynamicCache):
    """Hands out copies of its layers: what is cut there is not cut here."""

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        return copy.deepcopy(value) if name == "layers" and super().__getattribute__("copying") else value

    copying = False

    def update(self, *args, **kwargs):
        self.copying = False
        try:
            return super().update(*args, **kwargs)
        finally:
            self.copying = True


@pytest.mark.parametrize("layer", [1, 2])
@torch.no_grad()
def test_a_cache_that_is_not_cut_is_noticed(layer):
    model = tiny_internvl()
    with PyramidTokenPruning(layer=layer)(model), pytest.raises(BrokenPass, match=r"layers hold \[17, 27\] tokens"):
        model(**INPUTS, past_key_values=CopyingCache())


@torch.no_grad()
def test_a_cache_that_the_hooks_do_not_see_is_noticed():
    """As transformers 5.24 was to hooks that knew the old name alone: the layers before the cut keep all tokens."""
    model = tiny_internvl()

    class Unseen(modeling_qwen2.Qwen2DecoderLayer):
        """Takes the cache by the hook's back."""

        def __call__(self, *args, **kwargs):
            hidden = next(name for name in ("cache", "past_key_values") if name in kwargs)
            self.hidden = {hidden: kwargs[hidden]}
            return super().__call__(*args, **{**kwargs, hidden: None})

        def forward(self, *args, **kwargs):
            return super().forward(*args, **{**kwargs, **self.hidden})

    for layer in model.model.language_model.layers:
        layer.__class__ = Unseen
    with PyramidTokenPruning()(model), pytest.raises(BrokenPass, match=r"hold \[17, 27\] tokens; each of 4 .* 17"):
        model(**INPUTS)
