"""Methods that drop tokens in stages, in every family, against the stock model with more blocked at each stage."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ptprune import TokenPruner
from ptprune.methods import PyramidDrop
from ptprune.selection import Selection, keep_best
from tests.attach.test_evidence import EVERYTHING
from tests.attach.test_matrix import WINDOW, parsed
from tests.exact import Choice, assert_exact, dropped_of, ignoring, recording
from tests.oracle import blocked, eager_twin, language_model, watched
from tests.pairs import all_pairs, identity
from tests.zoo import SLIDING, ZOO, inputs_of, model_of


@dataclass(kw_only=True)
class Staged(TokenPruner):
    """PyramidDrop at any layers, from 0 too, with any shares."""

    layers: tuple[int, ...] = (1, 2, 3)
    shares: tuple[float, ...] = (0.8, 0.6, 0.4)
    everything: bool = False

    def cut_layers(self, num_layers):
        return self.layers

    @property
    def needs(self):
        return EVERYTHING if self.everything else frozenset({"last_attention"})

    def select(self, image):
        kept = keep_best(image.last_attention, max(1, round(self.shares[image.stage] * image.layout.num_unpruned)))
        return Selection(kept, scores={"instruction": image.last_attention})


AXES = {
    "family": [*ZOO, *(f"{name}, window {size}" for name in SLIDING for size in (12, 24))],
    "prompt": ["one picture", "batch", "batch of several pictures"],
    "side": ["left", "right"],
}


@pytest.mark.parametrize("case", all_pairs(AXES), ids=identity)
@torch.no_grad()
def test_pyramiddrop_keeps_what_the_blocked_stock_model_ranks_best(case):
    name, window = parsed(case["family"])
    model, inputs = model_of(name, sliding_window=window), inputs_of(name, case["prompt"], case["side"])
    pruner = PyramidDrop(keep_ratio=0.3, layer=1, window=WINDOW)
    with pruner(model):
        model(**inputs)
    twin, mask = eager_twin(model), inputs["attention_mask"].bool()
    images = pruner.report.images
    visual = ZOO[name].visual(model, inputs)
    left, ends, at = [], [0] * len(mask), 0
    for image in images:
        prunable = (visual & ~structural(name, model, inputs))[image.sample].nonzero()[:, 0].tolist()
        left.append(prunable[ends[image.sample] :][: image.num_tokens])
        ends[image.sample] += image.num_tokens
    assert sum(ends) == sum(image.num_tokens for image in images)
    whole = [len(tokens) for tokens in left]
    stages = []
    for at, share in enumerate((0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3)):
        so_far = Choice(tuple(range(1, 1 + at)), stages, {})
        with ignoring(twin, so_far, mask), watched(text_attention(twin, at)) as maps:
            twin(**inputs)
        gone = stages[-1].clone() if stages else torch.zeros_like(mask)
        for number, image in enumerate(images):
            sample = image.sample
            text = [p for p in range(mask.shape[1]) if mask[sample, p] and not visual[sample, p]]
            paid = maps[0][sample].mean(0)[text[-1]].tolist()
            kept = max(1, round(0.3 * whole[number]))
            total = kept if at == 2 else round(whole[number] * (kept / whole[number]) ** ((at + 1) / 3))
            assert abs(total - share * whole[number]) <= 1
            best = sorted(left[number], key=lambda p: (-paid[p], p))[:total]
            gone[sample, left[number]] = True
            gone[sample, best] = False
            left[number] = sorted(best)
        stages.append(gone)
    assert torch.equal(stages[-1], dropped_of(pruner.report, inputs))


def text_attention(model, index):
    return language_model(model).layers[index].self_attn


def structural(name, model, inputs):
    """BoolTensor [batch, prompt]: newlines of LLaVA's grids, which nothing drops; the zoo's ``pool`` marks them."""
    marks = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    if not ZOO[name].native:
        values = torch.zeros(ZOO[name].shape(model, inputs))
        marks[ZOO[name].visual(model, inputs)] = torch.cat(ZOO[name].pool(model, inputs, values)).isnan()
    return marks


@pytest.mark.parametrize("layers", [(0, 2), (1, 2)])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_later_stages_are_told_the_same_of_the_tokens_that_are_left(name, layers):
    model, inputs = model_of(name), inputs_of(name, "batch of several pictures")
    pruner = recording(Staged, layers=layers, shares=(0.6, 0.3), everything=True, window=WINDOW)
    with pruner(model):
        model(**inputs)
    first = [seen for seen in pruner.seen if seen[0].stage == 0]
    later = [seen for seen in pruner.seen if seen[0].stage == 1]
    states = []
    hook = language_model(model).layers[2].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    try:
        dropped = Choice.of(pruner, model, inputs["attention_mask"].bool()).stages[0]
        with blocked(model, dropped, layers[0], inputs["attention_mask"]):
            model(**inputs)
    finally:
        hook.remove()
    for (before, selection), (after, _) in zip(first, later, strict=True):
        kept = selection.kept
        assert after.layout.regions == before.layout.regions
        assert torch.equal(after.layout.region_of, before.layout.region_of[kept])
        assert after.layout.num_unpruned == before.layout.num_tokens
        for field in ("encoder_attention", "received_attention", "token_features", "embeddings"):
            assert torch.equal(getattr(after, field), getattr(before, field)[kept]), field
        for field in ("region_features", "image_feature", "pixels", "instruction_embeddings"):
            now, then = getattr(after, field), getattr(before, field)
            assert now is then is None or torch.equal(now, then), field
        where = before.layout.tokens[kept]
        torch.testing.assert_close(after.hidden_states, states[0][before.layout.sample, where], atol=5e-5, rtol=1e-4)
        assert after.instruction_map.shape == (len(after.instruction_embeddings), len(kept))


@torch.no_grad()
def test_a_stage_that_keeps_everything():
    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    stock = model(**inputs).logits
    pruner = Staged(shares=(1.0, 1.0, 1.0))
    with pruner(model):
        assert torch.equal(model(**inputs).logits, stock)
    pruner = Staged(shares=(1.0, 0.5, 0.5))
    with pruner(model):
        pruned = model(**inputs).logits
    with blocked(model, dropped_of(pruner.report, inputs), 2, inputs["attention_mask"]):
        assert (pruned - model(**inputs).logits)[pruner.report.kept_mask].abs().max() <= 5e-5


def test_layers_of_the_stages():
    assert PyramidDrop(layer=8).cut_layers(32) == (8, 16, 24), "the paper's"
    assert PyramidDrop().cut_layers(24) == (2, 9, 16)
    assert PyramidDrop(stages=2, layer=3).cut_layers(4) == (3,)


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (PyramidDrop(stages=5, layer=1), "stages must be at most 4 where 3 layers follow, got 5"),
        (PyramidDrop(layer=4), "layer must be below the model's 4"),
        (Staged(layers=(1, 4)), "layer must be below the model's 4 language model layers, got 4"),
        (Staged(layers=(2, 2)), r"must increase from 0, got \[2, 2\]"),
        (Staged(layers=()), r"must increase from 0, got \[\]"),
    ],
)
def test_stages_that_do_not_fit_the_model(pruner, message):
    with pytest.raises(ValueError, match=message), pruner(model_of("internvl")):
        pass


@pytest.mark.parametrize(("setting", "value"), [("stages", 1), ("stages", 2.5), ("layer", 0)])
def test_bad_settings(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be a whole number from"):
        PyramidDrop(**{setting: value})


def test_generation_without_a_cache_is_refused_where_a_stage_ends_inside_the_model():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    with Staged(layers=(0, 2), shares=(0.6, 0.3))(model), pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**inputs, max_new_tokens=2, use_cache=False)


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", ["internvl", "qwen3-vl", "gemma3"])
@torch.no_grad()
def test_stages_at_any_layers(name, layers):
    pruner = recording(Staged, layers=layers, shares=(0.8, 0.6, 0.4, 0.2), window=WINDOW)
    assert_exact(model_of(name), inputs_of(name, "batch of several pictures"), pruner)
