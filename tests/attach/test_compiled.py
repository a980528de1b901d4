"""The decoding step compiled: no graph more than for the stock model, and no break in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from transformers import CompileConfig, StaticCache

from ptprune import PyramidTokenPruning
from ptprune.conventions import keep_cache
from ptprune.errors import AttachError
from tests.internvl import batch, prompt, tiny_internvl
from tests.zoo import ZOO, inputs_of

LARGE, SMALL = batch(prompt([5, 6], 5, [7, 8, 9])), batch(prompt([5, 6], 2, [7, 8]))
RAGGED = batch(prompt([5, 6], 5, [7, 8, 9]), prompt([5], 2, [7]))
TEXT = batch(prompt([5, 6, 7]))


class Graphs(list[Any]):
    """Every graph that was compiled. The backend runs it as it is."""

    def __init__(self) -> None:
        super().__init__()

        def backend(graph: Any, inputs: Any, **options: Any) -> Any:
            self.append(graph)
            return graph

        self.backend = backend

    @property
    def options(self) -> dict[str, Any]:
        """Options of generate() for a static cache and a step that is compiled in one graph, on any device."""
        config = CompileConfig(backend=self.backend, fullgraph=True)
        config._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": config}


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@pytest.fixture
def model():
    return tiny_internvl(layers=2)  # each layer takes its time to compile


@torch.no_grad()
def test_generate_compiles_as_often_as_without_a_pruner(model, graphs):
    calls = [LARGE, LARGE, SMALL, RAGGED, LARGE]

    def counts(generate):
        return [(generate(inputs), len(graphs))[1] for inputs in calls]

    stock = counts(lambda inputs: model.generate(**inputs, max_new_tokens=4, **graphs.options))
    torch._dynamo.reset()
    graphs.clear()
    model = tiny_internvl(layers=2)

    def pruned(inputs):
        with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model):  # a block for each call
            dynamic = model.generate(**inputs, max_new_tokens=4)
            assert torch.equal(model.generate(**inputs, max_new_tokens=4, **graphs.options), dynamic)

    assert counts(pruned) == stock


@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3", "llava-next"])
@torch.no_grad()
def test_families(name, graphs):
    model, inputs = ZOO[name].build(layers=2), inputs_of(name, "one picture")
    with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model):
        dynamic = model.generate(**inputs, max_new_tokens=4)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, **graphs.options), dynamic)
    assert len(graphs) == 1


@torch.no_grad()
def test_attaching_to_a_model_that_generate_compiled(model, graphs):
    stock = model.generate(**TEXT, max_new_tokens=4, **graphs.options)
    before = len(graphs)
    with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model):
        assert torch.equal(model.generate(**TEXT, max_new_tokens=4, **graphs.options), stock)
        expected = model.generate(**LARGE, max_new_tokens=4)
        assert torch.equal(model.generate(**LARGE, max_new_tokens=4, **graphs.options), expected)
    assert (before, len(graphs)) == (1, 3)


def loop(model, step, inputs, cache, **more):
    """Tokens that a hand-written loop chooses: it prefills as it is, and decodes with ``step``."""
    out = model(**inputs, **keep_cache(model, cache))
    cache, logits, tokens = out.past_key_values, out.logits, []
    for number in range(4):
        tokens.append(logits[:, -1:].argmax(-1))
        position = torch.full((len(tokens[-1]), 1), inputs["input_ids"].shape[1] + number)
        logits = step(input_ids=tokens[-1], position_ids=position, **keep_cache(model, cache), **more)
    return torch.cat(tokens, dim=1)


def static_cache(model):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=64)


@torch.no_grad()
def test_a_compiled_step_by_hand_is_compiled_once_for_all_pictures(model, graphs):
    def step(**inputs):
        return model(**inputs).logits

    compiled, cache = torch.compile(step, backend=graphs.backend, fullgraph=True), static_cache(model)
    with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model):
        for inputs in (LARGE, SMALL, LARGE):
            expected = loop(model, step, inputs, None)
            assert torch.equal(loop(model, compiled, inputs, cache), expected)
            cache.reset()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("inputs", "static", "more"),
    [(LARGE, False, {}), (RAGGED, True, {}), (LARGE, True, {"attention_mask": torch.ones(1, 28)})],
    ids=["dynamic", "ragged", "a mask of tokens"],
)
@torch.no_grad()
def test_what_needs_hooks_is_refused_in_a_graph(model, graphs, inputs, static, more):
    compiled = torch.compile(lambda **inputs: model(**inputs).logits, backend=graphs.backend, fullgraph=True)
    error = pytest.raises(torch._dynamo.exc.Unsupported, match="compiled while a pruner|a compiled step over a pruned")
    with PyramidTokenPruning(keep_ratio=0.4, layer=1)(model), error:
        loop(model, compiled, inputs, static_cache(model) if static else None, **more)


@torch.no_grad()
def test_pictures_are_refused_by_a_graph_that_knew_them_before(model, graphs):
    compiled = torch.compile(lambda **inputs: model(**inputs).logits, backend=graphs.backend)
    compiled(**LARGE)
    with PyramidTokenPruning(layer=1)(model), pytest.raises(AttachError, match="compiled while a pruner is attached"):
        compiled(**LARGE)
