"""Attaching leaves no trace, and models do not get in each other's way."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import warnings
import weakref
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from ptprune import PyramidTokenPruning, RandomPruning
from ptprune.conventions import named
from tests.internvl import IMAGE, batch, prompt, tiny_internvl
from tests.oracle import blocked
from tests.zoo import ZOO

INPUTS = batch(prompt([5, 6], 5, [7, 8, 9]), prompt([5], 2, [7]))


def traces(model: nn.Module) -> dict:
    """Everything that attaching could leave behind."""
    return {
        name: (
            {key for key in module.__dict__ if not key.startswith("_")},
            id(module.__dict__.get("config")),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            len(module._forward_hooks_always_called),
        )
        for name, module in model.named_modules()
    }


@pytest.mark.smoke
@torch.no_grad()
def test_leaving_the_block_restores_the_model():
    model = tiny_internvl()
    stock, before = model(**INPUTS).logits, traces(model)
    with PyramidTokenPruning()(model):
        assert traces(model) != before
        assert not torch.equal(model(**INPUTS).logits, stock)
    assert traces(model) == before
    assert torch.equal(model(**INPUTS).logits, stock)


@pytest.mark.parametrize("where", ["vision", "scored attention", "later layer", "user code"])
@torch.no_grad()
def test_an_exception_restores_the_model(where):
    model = tiny_internvl()
    stock, before = model(**INPUTS).logits, traces(model)
    module = {
        "vision": model.model.vision_tower.encoder.layer[-1].attention.q_proj,
        "scored attention": model.model.language_model.layers[1].self_attn.q_proj,
        "later layer": model.model.language_model.layers[3].mlp,
        "user code": None,
    }[where]

    def fail(*_):
        raise ArithmeticError

    pruner = PyramidTokenPruning()
    hook = module.register_forward_pre_hook(fail) if module is not None else None

    def use():
        with pruner(model):
            model(**INPUTS)
            fail()

    with pytest.raises(ArithmeticError):
        use()
    if hook is not None:
        hook.remove()
    assert traces(model) == before
    assert torch.equal(model(**INPUTS).logits, stock)
    with pruner(model):
        model(**INPUTS)
    assert pruner.report.visual_tokens == (28, 14)


@torch.no_grad()
def test_a_failed_call_does_not_spoil_the_next():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    attention = model.model.language_model.layers[1].self_attn.q_proj
    with pruner(model):
        expected = model(**INPUTS).logits
        hook = attention.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**INPUTS)
        hook.remove()
        assert torch.equal(model(**INPUTS).logits, expected)


@torch.no_grad()
def test_nesting_and_entering_again():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    model(**INPUTS)  # transformers installs hooks of its own at the first call
    before = traces(model)
    with pruner(model):
        expected = model(**INPUTS).logits
        with pruner(model) as inner:
            assert inner is pruner
            assert torch.equal(model(**INPUTS).logits, expected)
        assert torch.equal(model(**INPUTS).logits, expected), "the inner block must not detach the outer one"
    with pruner(model):
        assert torch.equal(model(**INPUTS).logits, expected)
    assert traces(model) == before


@pytest.mark.smoke
@torch.no_grad()
def test_attach_and_detach():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    model(**INPUTS)  # transformers installs hooks of its own at the first call
    before = traces(model)
    pruner.attach(model)
    with pytest.raises(RuntimeError, match="attached .* already: detach it first"):
        pruner.attach(model)
    with pytest.raises(RuntimeError, match="already"), RandomPruning()(model):
        pass
    assert model(**INPUTS) is not None
    assert pruner.report is not None
    pruner.detach()
    pruner.detach()
    assert traces(model) == before


@torch.no_grad()
def test_two_models_and_two_pruners_at_once():
    one, two = tiny_internvl(), tiny_internvl(seed=7, layers=3)
    left, right = PyramidTokenPruning(keep_ratio=0.25), PyramidTokenPruning(keep_ratio=0.75, layer=0)
    with left(one):
        alone = one(**INPUTS).logits
    with right(two):
        other_alone = two(**INPUTS).logits
    stock = two(**INPUTS).logits
    with left(one):
        assert torch.equal(two(**INPUTS).logits, stock)
        with right(two):
            assert torch.equal(one(**INPUTS).logits, alone)
            assert torch.equal(two(**INPUTS).logits, other_alone)
            assert torch.equal(one(**INPUTS).logits, alone)
    assert left.report.visual_tokens == (28, 7)
    assert right.report.visual_tokens == (28, 21)


@torch.no_grad()
def test_one_pruner_on_two_models():
    pruner, one, two = PyramidTokenPruning(), tiny_internvl(), tiny_internvl(seed=7)
    pruner.attach(one)
    pruner.attach(two)
    one(**INPUTS)
    first = pruner.report
    two(**batch(prompt([5], 3, [6])))
    assert first.visual_tokens == (28, 14)
    assert pruner.report.visual_tokens == (12, 6)
    pruner.detach()


@torch.no_grad()
def test_the_second_picture_is_pruned_by_itself():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    first, second = batch(prompt([5], 5, [6]), seed=1), batch(prompt([5], 3, [7, 8]), seed=2)
    with pruner(model):
        alone = model.generate(**second, max_new_tokens=5)
    with pruner(model):
        model.generate(**first, max_new_tokens=5)
        assert torch.equal(model.generate(**second, max_new_tokens=5), alone)


def test_a_pruner_is_a_plain_value():
    pruner = PyramidTokenPruning(keep_ratio=0.3)
    model = tiny_internvl()
    pruner.attach(model)
    assert asdict(pruner)["keep_ratio"] == 0.3
    assert "_attachments" not in asdict(pruner)
    for twin in (copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner)), replace(pruner)):
        assert twin == pruner
        assert twin.report is None
        twin.detach()
    pruner.detach()


def test_models_are_not_kept_alive():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    with pruner(model), torch.no_grad():
        model(**INPUTS)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    assert pruner.report.visual_tokens == (28, 14)


def test_an_attached_model_can_be_forgotten():
    model = tiny_internvl()
    PyramidTokenPruning().attach(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


class _Int8Linear(nn.Module):
    """What bitsandbytes does to a model, without its kernels: other modules in place of nn.Linear."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, states):
        return nn.functional.linear(states, self.weight.to(states.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_quantised_modules(layer):
    model = tiny_internvl()
    for module in list(model.model.language_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Int8Linear(child))
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer)
    with pruner(model):
        pruned = model(**INPUTS).logits
    dropped = INPUTS["attention_mask"].bool() & ~pruner.report.kept_mask
    with blocked(model, dropped, layer, INPUTS["attention_mask"]):
        stock = model(**INPUTS).logits
    assert (pruned - stock)[pruner.report.kept_mask].abs().max() <= 5e-5


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_offloaded_device_map(layer, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, pruner = tiny_internvl(), PyramidTokenPruning(keep_ratio=0.4, layer=layer)
    with pruner(model):
        expected = model.generate(**INPUTS, max_new_tokens=5)
    devices = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    devices |= {"model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu"}
    devices |= {"model.language_model.rotary_emb": "cpu"}
    devices |= {f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    model = accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    with pruner(model):
        assert torch.equal(model.generate(**INPUTS, max_new_tokens=5), expected)


@torch.no_grad()
def test_positional_arguments():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    with pruner(model):
        expected = model(**INPUTS).logits
        assert torch.equal(
            model(INPUTS["input_ids"], INPUTS["pixel_values"], INPUTS["attention_mask"]).logits, expected
        )


def test_arguments_by_name():
    def function(first, second=2, **kwargs):
        raise NotImplementedError

    assert named(function, (1,), {"third": 3}) == {"first": 1, "third": 3}


def test_generate_keeps_its_signature_and_documentation():
    model = tiny_internvl()
    stock = model.generate.__doc__
    with PyramidTokenPruning()(model):
        assert model.generate.__doc__ == stock
        assert model.generate.__name__ == "generate"


@pytest.mark.smoke
@torch.no_grad()
def test_a_report_of_plain_types():
    import json

    model, pruner = tiny_internvl(), PyramidTokenPruning()
    with pruner(model):
        model(**INPUTS)
    report = json.loads(json.dumps(pruner.report.to_dict()))
    assert report["visual_tokens"] == [28, 14]
    assert report["sequence_length"] == [[27, 17], [12, 8]]
    image = report["images"][0]
    assert len(image["kept"]) == 10 == sum(region["budget"] for region in image["regions"])
    assert [region["is_thumbnail"] for region in image["regions"]] == [False] * 4 + [True]
    assert set(image["scores"]) == {"token", "instruction", "fused"}
    assert {"28", "14", "-37%"} <= set(str(pruner.report).split())
    assert sum(pruner.report.kept_mask[0].tolist()) == 17
    assert int((INPUTS["input_ids"] == IMAGE).sum()) == 28


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_no_deprecated_name_is_used(name, caplog, monkeypatch):
    """Neither by a prefill, nor by decoding, nor by reading what came out."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = ZOO[name].build()
    inputs = ZOO[name].inputs(ZOO[name].prompts["one picture"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*deprecated.*")
        warnings.filterwarnings("ignore", message=".*__array__.*")
        with PyramidTokenPruning()(model):
            model.generate(**inputs, max_new_tokens=3)
            model(**inputs)
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]
