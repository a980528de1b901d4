from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptprune.layout import ImageLayout, Region
from ptprune.methods.pyramid import PaperTokenPruning, covering
from ptprune.scores import REGION_SCORES, ImageEvidence
from ptprune.scores.region import region_weights
from ptprune.scores.registry import ScoreRegistry
from ptprune.selection import fuse, keep_top, minmax

# few distinct values, so that ties are common
scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=60)


@given(st.lists(scores, min_size=1, max_size=6), st.randoms())
def test_keep_top_keeps_the_best_of_each_group(groups, random):
    budgets = [random.randint(0, len(group)) for group in groups]
    flat = torch.tensor([score for group in groups for score in group])
    index = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    expected, start = [], 0
    for group, budget in zip(groups, budgets, strict=True):
        best = sorted(range(len(group)), key=lambda j: (-group[j], j))[:budget]
        expected += sorted(start + j for j in best)
        start += len(group)
    assert keep_top(flat, index, budgets).tolist() == expected


@given(scores)
def test_minmax(values):
    scaled = minmax(torch.tensor(values))
    if len(set(values)) == 1:
        assert not scaled.any(), "constant scores say nothing"
    else:
        assert scaled.min() == 0
        assert scaled.max() == 1
        assert scaled.argsort(stable=True).tolist() == torch.tensor(values).argsort(stable=True).tolist()


@pytest.mark.smoke
def test_fuse():
    token, instruction = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([0.003, 0.001, 0.002])
    assert fuse(token, None, 0.5).tolist() == [0, 0.5, 1]
    torch.testing.assert_close(fuse(token, instruction, 0.25), torch.tensor([0.25, 0.375, 0.875]))
    torch.testing.assert_close(fuse(token, instruction, 0.5, False), torch.tensor([0.0015, 0.2505, 0.501]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fuse_refuses_overflow(bad):
    fine, broken = torch.ones(2), torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match="NaN or infinite"):
        fuse(broken, fine, 0.5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fuse(fine, broken, 0.5)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12), st.floats(0.05, 20))
def test_region_weights(saliency, temperature):
    weights = region_weights(saliency, temperature)
    assert sum(weights) == pytest.approx(1)
    ranked = sorted(zip(saliency, weights, strict=True))
    assert [weight for _, weight in ranked] == sorted(weights), "monotone in saliency"


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_temperature_means_the_same_on_every_encoder(scale, offset):
    saliency = [0.3, 0.5, 0.55, 0.9]
    moved = [value * scale + offset for value in saliency]
    assert region_weights(moved, 1.5) == pytest.approx(region_weights(saliency, 1.5), rel=1e-7)


def test_near_equal_tiles_count_as_equal():
    assert region_weights([0.9, 0.9, 0.9 + 1e-7], 0.1) == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="NaN"):
        region_weights([0.1, float("nan")], 1)


def image(tiles: int, size: int = 16, thumbnail: bool = True) -> ImageEvidence:
    regions = tuple(Region((1, size), thumbnail and i == tiles > 0) for i in range(tiles + thumbnail))
    generator = torch.Generator().manual_seed(tiles)
    count = len(regions) * size
    features = torch.randn(len(regions), 8, generator=generator)
    return ImageEvidence(
        ImageLayout(0, torch.arange(count), regions, torch.arange(len(regions)).repeat_interleave(size), list),
        region_features=features,
        image_feature=features[-1],
        encoder_attention=torch.rand(count, generator=generator),
        instruction_attention=torch.rand(count, generator=generator),
    )


@pytest.mark.smoke
@given(st.integers(2, 12), st.floats(0.001, 1), st.sampled_from(["ratio", "whole", "region"]), st.floats(0.05, 50))
def test_exactly_k_tokens_in_every_setting(tiles, ratio, thumbnail, temperature):
    evidence = image(tiles)
    pruner = PaperTokenPruning(keep_ratio=ratio, thumbnail=thumbnail, temperature=temperature)
    selection = pruner.checked_select(evidence)
    number = (tiles + 1) * 16
    assert len(selection.kept) == max(1, round(ratio * number))
    in_thumbnail = int((selection.kept >= tiles * 16).sum())
    if thumbnail == "whole":
        assert in_thumbnail == min(16, len(selection.kept))
    elif thumbnail == "ratio":
        assert abs(in_thumbnail - ratio * 16) <= 1


def test_one_tile_has_no_region_stage():
    selection = PaperTokenPruning().checked_select(image(0))
    assert len(selection.kept) == 8
    assert selection.saliency is None


@pytest.mark.smoke
def test_uniform_regions():
    selection = PaperTokenPruning(region="uniform").checked_select(image(4))
    assert torch.bincount(selection.kept // 16).tolist() == [8] * 5


def test_the_question_decides_with_alpha_one_and_not_at_all_with_zero():
    evidence = image(4)
    guided = PaperTokenPruning(alpha=1.0, region="uniform").checked_select(evidence)
    for tile in range(5):
        mine = evidence.instruction_attention[tile * 16 : tile * 16 + 16]
        expected = mine.argsort(descending=True)[:8].sort().values + tile * 16
        assert guided.kept[guided.kept // 16 == tile].tolist() == expected.tolist()
    blind = PaperTokenPruning(alpha=0.0)
    assert "instruction_attention" not in blind.needs
    assert "instruction" not in blind.checked_select(evidence).scores


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.floats(0.01, 1))
def test_coverage_is_the_smallest_that_reaches(importance, coverage):
    values = sorted((importance if any(importance) else [1.0] * len(importance)), reverse=True)
    number = covering(torch.tensor(importance), coverage)
    assert 1 <= number <= len(values)
    assert sum(values[:number]) >= (coverage - 1e-6) * sum(values)
    assert number == 1 or sum(values[: number - 1]) <= (coverage + 1e-6) * sum(values)


def test_evidence_that_was_not_asked_for():
    bare = ImageEvidence(image(2).layout)
    with pytest.raises(ValueError, match="encoder_attention was not computed"):
        PaperTokenPruning(alpha=0, region="uniform").checked_select(bare)
    with pytest.raises(ValueError, match="region_features was not computed"):
        REGION_SCORES["cls-similarity"].compute(bare)


def test_regions_must_cover_the_tokens():
    with pytest.raises(ValueError, match="do not make an image of 4 tokens"):
        ImageLayout(0, torch.arange(4), (Region((1, 3)),), torch.zeros(4, dtype=torch.long), list)


def test_registering_a_score():
    registry = ScoreRegistry("token")

    @registry.register("first", needs=("encoder_attention",))
    def first(image):
        """What it is.

        More.
        """
        return image.require("encoder_attention")

    assert registry["first"].about == "What it is."
    assert registry.names == ("first",)
    with pytest.raises(ValueError, match="exists already"):
        registry.register("first")(first)
    with pytest.raises(ValueError, match="unknown needs"):
        registry.register("second", needs=("nothing",))
