"""Methods that drop tokens in stages, in every family, against the stock model with more blocked at each stage."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch

from ptprune import TokenPruner
from ptprune.methods import PyramidDrop
from ptprune.selection import Selection, keep_best
from tests.attach.test_evidence import EVERYTHING
from tests.attach.test_exactness import PROMPTS
from tests.attach.test_families import FEW, MODES, SLIDING, WINDOW, dropped_of, follow_up, inputs_of, model_of
from tests.internvl import batch, tiny_internvl
from tests.oracle import blocked, eager_twin, language_model, watched
from tests.versions import mode_items
from tests.zoo import ZOO

CASES = [(name, prompt) for name in ZOO for prompt in FEW]
WINDOWS = [(name, None) for name in ZOO] + [(name, 20) for name in SLIDING]


@dataclass(kw_only=True)
class Staged(TokenPruner):
    """PyramidDrop at any layers, from 0 too, which remembers what it saw and where its images' tokens were."""

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
        self.seen = [*getattr(self, "seen", []), (image, kept)]
        return Selection(kept, scores={"instruction": image.last_attention})

    def dropped(self, inputs):
        """After each stage a BoolTensor [batch, prompt], from what was seen in one prefill."""
        stages, left = [], {}
        for stage in range(len(self.layers)):
            gone = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool) if not stage else stages[-1].clone()
            for number, (image, kept) in enumerate([seen for seen in self.seen if seen[0].stage == stage]):
                where = image.layout.tokens if not stage else left[number]
                assert len(where) == image.layout.num_tokens
                left[number] = where[kept]
                gone[image.layout.sample, where] = True
                gone[image.layout.sample, left[number]] = False
            stages.append(gone)
        return stages


def blocked_in_stages(model, stages, layers, attention_mask, prompt_end=None, compact=False):
    """One stage's mask over the other's."""
    stack = ExitStack()
    for dropped, layer in zip(stages, layers, strict=True):
        stack.enter_context(blocked(model, dropped, layer, attention_mask, prompt_end, compact))
    return stack


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "prompt", "window"),
    [(*case, None) for case in CASES]
    + [(name, "batch of several pictures", window) for name in SLIDING for window in (12, 24)],
)
@torch.no_grad()
def test_pyramiddrop_keeps_what_the_blocked_stock_model_ranks_best(name, prompt, window, side):
    model = model_of(name) if window is None else ZOO[name].build(sliding_window=window)
    inputs = inputs_of(name, prompt, side)
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
        with blocked_in_stages(twin, stages, range(1, 1 + at), mask), watched(text_attention(twin, at)) as maps:
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
    pruner = Staged(layers=layers, shares=(0.6, 0.3), everything=True, window=WINDOW)
    with pruner(model):
        model(**inputs)
    first = [seen for seen in pruner.seen if seen[0].stage == 0]
    later = [seen for seen in pruner.seen if seen[0].stage == 1]
    states = []
    hook = language_model(model).layers[2].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    try:
        with blocked(model, pruner.dropped(inputs)[0], layers[0], inputs["attention_mask"]):
            model(**inputs)
    finally:
        hook.remove()
    for (before, kept), (after, _) in zip(first, later, strict=True):
        assert after.layout.regions == before.layout.regions
        assert torch.equal(after.layout.region_of, before.layout.region_of[kept])
        assert after.layout.num_unpruned == before.layout.num_tokens
        for field in ("cls_attention", "received_attention", "token_features", "embeddings"):
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


@pytest.mark.parametrize("positions", ["original", "compact"])
@torch.no_grad()
def test_rows_of_one_length_that_lose_different_numbers(positions):
    """No padding to fill up with: dropped tokens stay as columns that nobody sees."""
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, equal lengths"])
    assert inputs["attention_mask"].all()
    pruner = Staged(layers=(1, 2), shares=(0.7, 0.4), positions=positions)
    with pruner(model):
        pruned = model.generate(**inputs, max_new_tokens=6)
    (_, one), (_, two) = pruner.report.sequence_length
    assert one != two
    stages, mask = pruner.dropped(inputs), inputs["attention_mask"]
    with blocked_in_stages(model, stages, pruner.layers, mask, compact=positions == "compact"):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, use_cache=False), pruned)
