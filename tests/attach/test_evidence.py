"""What methods are told about an image, in every family, against the stock model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from ptprune import TokenPruner
from ptprune.methods.pyramid import PaperTokenPruning
from ptprune.scores.attention import QueriesAndKeys, patch_scores
from ptprune.scores.evidence import NAMES
from ptprune.selection import Selection
from tests.attach.test_matrix import WINDOW
from tests.exact import dropped_of
from tests.oracle import (
    blocked,
    eager_twin,
    language_model,
    projected_patches,
    scored_vision_attention,
    vision_evidence,
    watched,
)
from tests.versions import repeats_tiles
from tests.zoo import ZOO, inputs_of, model_of
from tests.zoo.pictures import picture

EVERYTHING = frozenset(NAMES)
CASES = [(name, prompt) for name in ZOO for prompt in ("one picture", "batch", "batch of several pictures")]


@dataclass(kw_only=True)
class Curious(TokenPruner):
    """Asks for everything, keeps what comes first."""

    @property
    def needs(self):
        return EVERYTHING

    def select(self, image):
        self.seen = [*getattr(self, "seen", []), image]
        return Selection(torch.arange(self.num_kept(image.layout.num_tokens)))


@torch.no_grad()
def evidence_of(name, prompt, layer):
    pruner = Curious(layer=layer, window=WINDOW)
    with pruner(model_of(name)):
        model_of(name)(**inputs_of(name, prompt))
    for image in pruner.seen:
        assert all(getattr(image, field) is not None for field in EVERYTHING - {"image_feature"})
        assert image.image_feature is not None or len(image.layout.regions) == 1
    return pruner.seen


@pytest.mark.parametrize(("name", "prompt"), CASES)
def test_patch_values_are_pooled_as_the_model_packs_its_features(name, prompt):
    specimen, model, inputs = ZOO[name], model_of(name), inputs_of(name, prompt)
    features = projected_patches(specimen, model, inputs)
    channels = [specimen.pool(model, inputs, features[..., channel]) for channel in range(4)]
    attention = specimen.pool(model, inputs, vision_evidence(specimen, model, inputs)[0])
    for i, image in enumerate(evidence_of(name, prompt, 1)):
        structural = attention[i].isnan()
        torch.testing.assert_close(image.encoder_attention, attention[i][~structural])
        for channel, expected in enumerate(channels):
            torch.testing.assert_close(image.token_features[:, channel], expected[i][~structural], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["internvl", "llava-next"])
@torch.no_grad()
def test_attention_received_beside_a_cls(name):
    specimen, inputs = ZOO[name], inputs_of(name, "batch")
    twin = eager_twin(model_of(name))
    with watched(scored_vision_attention(twin)) as maps:
        twin(**inputs)
    expected = specimen.pool(twin, inputs, maps[0].mean((1, 2))[:, 1:])
    for image, values in zip(evidence_of(name, "batch", 1), expected, strict=True):
        torch.testing.assert_close(image.received_attention, values[~values.isnan()])


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_the_language_models_evidence(name, layer):
    model, inputs = model_of(name), inputs_of(name, "batch")
    visual, twin, states = ZOO[name].visual(model, inputs), eager_twin(model), {}
    decoder = language_model(twin)
    for index in (0, layer):
        decoder.layers[index].register_forward_pre_hook(lambda m, a, i=index: states.setdefault(i, a[0]))
    with watched(decoder.layers[max(layer - 1, 0)].self_attn) as maps:
        twin(**inputs)
    for image in evidence_of(name, "batch", layer):
        sample, tokens = image.layout.sample, image.layout.tokens
        asks = range(int(visual[sample].nonzero()[-1]) + 1, visual.shape[1])
        rows = maps[0].mean(1)[sample, asks.start :, tokens]
        torch.testing.assert_close(image.instruction_map, rows, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(image.last_attention, rows[-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(image.instruction_attention, rows.amax(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(image.embeddings, states[0][sample, tokens], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(image.instruction_embeddings, states[0][sample, asks.start :], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(image.hidden_states, states[layer][sample, tokens], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_a_small_copy_of_the_picture(name):
    specimen = ZOO[name]
    _, (picture,) = specimen.prompts["one picture"][0]
    (image,) = evidence_of(name, "one picture", 1)
    original = torch.tensor(list(picture.getdata()), dtype=torch.float32).view(*picture.size[::-1], 3).permute(2, 0, 1)
    size = image.pixels.shape[-2:]
    small = F.interpolate(original[None], size=size, mode="bilinear", antialias=True)[0]
    for mine, theirs in zip(image.pixels, small, strict=True):
        assert torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1] > 0.9


@dataclass(kw_only=True)
class Merging(TokenPruner):
    """Keeps the first tokens, and adds the mean of the dropped ones to each."""

    @property
    def needs(self):
        return frozenset({"hidden_states"})

    def select(self, image):
        kept = torch.arange(self.num_kept(image.layout.num_tokens))
        return Selection(kept, states=image.hidden_states[kept] + image.hidden_states[len(kept) :].mean(0))


@repeats_tiles
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["internvl", "idefics3", "gemma3", "qwen3-vl"])
@torch.no_grad()
def test_merged_states(name, layer):
    model, inputs = model_of(name), inputs_of(name, "batch")
    pruner = Merging(keep_ratio=0.4, layer=layer)
    with pruner(model):
        pruned = model(**inputs).logits
        beams = model.generate(**inputs, max_new_tokens=5, num_beams=2)
    dropped = dropped_of(pruner.report, inputs)
    visual, width = ZOO[name].visual(model, inputs), len(dropped)

    def merge(module, args):
        states = args[0].clone()
        for row in range(len(states)):
            mine, gone = visual[row // (len(states) // width)], dropped[row // (len(states) // width)]
            mine, gone = F.pad(mine, (0, states.shape[1] - len(mine))), F.pad(gone, (0, states.shape[1] - len(gone)))
            states[row, mine & ~gone] += states[row, gone].mean(0)
        return states, *args[1:]

    with blocked(model, dropped, layer, inputs["attention_mask"]):
        hook = language_model(model).layers[layer].register_forward_pre_hook(merge)
        stock = model(**inputs).logits
        if layer == 0:  # later, generated tokens would see unmerged ones in the first layers' keys, as they do here
            assert torch.equal(model.generate(**inputs, max_new_tokens=5, num_beams=2, use_cache=False), beams)
        hook.remove()
    assert (pruned - stock)[pruner.report.kept_mask].abs().max() <= 5e-5


class Spy(PaperTokenPruning):
    """Keeps the evidence of every image."""

    def select(self, image):
        self.__dict__.setdefault("seen", []).append(image)
        return super().select(image)


@pytest.mark.parametrize("size", [(90, 60), (1000, 10), (10, 1000)])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_evidence_fits_the_regions(name, size):
    inputs = ZOO[name].inputs([("look at <image> what is it", [picture(*size)])])
    pruner = Spy(window=WINDOW)
    with pruner(model_of(name)):
        model_of(name)(**inputs)
    (image,) = pruner.seen
    assert len(image.region_features) == len(image.layout.regions)
    assert image.encoder_attention.shape == image.instruction_attention.shape == (image.layout.num_tokens,)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].native])
@torch.no_grad()
def test_the_whole_pictures_feature_is_the_mean_over_its_tokens(name):
    pruner = Spy(window=WINDOW)
    with pruner(model_of(name)):
        model_of(name)(**inputs_of(name, "several pictures"))
    sizes = [torch.tensor([region.num_tokens for region in image.layout.regions]) for image in pruner.seen]
    assert any(len(set(numbers.tolist())) > 1 for numbers in sizes)
    for image, numbers in zip(pruner.seen, sizes, strict=True):
        mean = (image.region_features * numbers[:, None]).sum(0) / numbers.sum()
        torch.testing.assert_close(image.image_feature, mean)


def scores_of(shown):
    return patch_scores(shown, False, {"encoder_attention"})["encoder_attention"]


def test_packed_pictures_are_scored_one_by_one():
    query, key = torch.randn(2, 1, 2, 10, 4).unbind(0)
    packed = scores_of(QueriesAndKeys(query, key, 0.5, None, [6, 4]))
    apart = [
        scores_of(QueriesAndKeys(query[:, :, part], key[:, :, part], 0.5, None, None))
        for part in (slice(0, 6), slice(6, 10))
    ]
    torch.testing.assert_close(packed, torch.cat(apart))


def test_padded_patches_neither_pay_nor_receive_whatever_the_mask_looks_like():
    query, key = torch.randn(2, 2, 2, 5, 4).unbind(0)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    boolean = real[:, None, None].expand(-1, 1, 5, -1)
    additive = torch.zeros(boolean.shape).masked_fill(~boolean, torch.finfo(torch.float32).min)
    alone = scores_of(QueriesAndKeys(query[1:, :, :3], key[1:, :, :3], 0.5, None, None))
    for mask in (real, real.long(), boolean, additive):
        scores = scores_of(QueriesAndKeys(query, key, 0.5, mask, None)).view(2, 5)
        torch.testing.assert_close(scores[1], torch.nn.functional.pad(alone, (0, 2)))
