"""Greedy determinantal choice against explicit determinants, and PTP's ``choose="coverage"`` and ``floor``."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ptprune.methods.determinantal import RIDGE, grow
from ptprune.methods.pyramid import PaperTokenPruning
from ptprune.scores import ImageEvidence
from ptprune.selection import fuse
from tests.methods.slow import determinantal, even, regions
from tests.methods.test_rivals import LAYOUTS, random_image


def random_set(number, dimensions, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(number, dimensions, generator=generator), dim=-1)
    return vectors, torch.rand(number, generator=generator)


def log_determinant(vectors, weights, chosen):
    kernel = (vectors @ vectors.T + RIDGE * torch.eye(len(vectors))) * weights * weights[:, None]
    return torch.logdet(kernel.double()[chosen][:, chosen]).item()


@pytest.mark.smoke
@pytest.mark.parametrize(("number", "dimensions", "total"), [(20, 30, 12), (16, 5, 16), (12, 3, 7), (1, 4, 1)])
def test_one_at_a_time_it_is_the_greedy_choice(number, dimensions, total):
    """In the same order, too; beyond as many tokens as dimensions, the rest by their gains."""
    for seed in range(5):
        vectors, weights = random_set(number, dimensions, seed)
        slow = determinantal(vectors.tolist(), weights.tolist(), list(range(number)), total)
        assert grow(vectors[None], weights[None], total)[0].tolist() == slow


def test_what_is_given_comes_first_and_counts():
    vectors, weights = random_set(14, 9, 0)
    weights[3] = 0  # whatever its weight
    slow = determinantal(vectors.tolist(), weights.tolist(), list(range(14)), 8, given=[3, 11])
    assert slow != determinantal(vectors.tolist(), weights.tolist(), list(range(14)), 8)
    assert grow(vectors[None], weights[None], 8, torch.tensor([[3, 11]]))[0].tolist() == slow


def test_groups_do_not_see_each_other():
    sets = [random_set(15, 20, seed) for seed in range(3)]
    together = grow(*(torch.stack(each) for each in zip(*sets, strict=True)), 9)
    for alone, chosen in zip(sets, together, strict=True):
        assert torch.equal(grow(*(each[None] for each in alone), 9)[0], chosen)


@given(
    number=st.integers(2, 60),
    dimensions=st.integers(2, 80),
    share=st.floats(0.05, 1),
    steps=st.integers(1, 12),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=60)
def test_in_steps_of_several(number, dimensions, share, steps, seed):
    """Every token once; and the first of each step is what greed takes after all that was chosen before."""
    vectors, weights = random_set(number, dimensions, seed)
    total = max(1, round(share * number))
    chosen = grow(vectors[None], weights[None], total, steps=steps)[0].tolist()
    assert len(set(chosen)) == total
    spanning = min(total, dimensions)
    for start in range(0, spanning, math.ceil(spanning / steps)):
        before = chosen[:start]
        gains = [
            log_determinant(vectors, weights, [*before, i]) if i not in before else -math.inf for i in range(number)
        ]
        assert gains[chosen[start]] >= max(gains) - 1e-3


def test_duplicates_of_like_weight_do_not_come_in_the_same_step():
    vectors, weights = random_set(20, 40, 1)
    weights = 0.5 + weights / 2
    doubled, twice = torch.cat([vectors, vectors]), torch.cat([weights, weights * 0.99])
    chosen = grow(doubled[None], twice[None], 20, steps=4)[0].tolist()
    for start in range(0, 20, 5):
        assert len({token % 20 for token in chosen[start : start + 5]}) == 5
    best = weights.argsort(descending=True)
    top = torch.cat([best[:10], best[:10] + 20]).tolist()
    assert log_determinant(doubled, twice, chosen) > log_determinant(doubled, twice, top) + 20


def test_steps_of_several_are_nearly_as_good():
    """At least nine tenths of what greed gains over the best weights, in the logarithm of the determinant."""
    for seed in range(10):
        clusters, _ = random_set(12, 40, seed)
        noise, weights = random_set(120, 40, seed + 1000)
        vectors = F.normalize(clusters.repeat(10, 1) + 0.5 * noise, dim=-1)
        greedy, several = (grow(vectors[None], weights[None], 30, steps=steps)[0].tolist() for steps in (30, 6))
        top = weights.argsort(descending=True)[:30].tolist()
        whole = log_determinant(vectors, weights, greedy) - log_determinant(vectors, weights, top)
        assert log_determinant(vectors, weights, several) > log_determinant(vectors, weights, greedy) - 0.1 * whole


def scored(name, seed=0):
    """An image with all that ``PTP`` may need; regions are alike, so that budgets are even."""
    image = random_image(name, seed)
    number = len(image.layout.regions)
    more = {"instruction_attention": image.last_attention, "region_features": torch.ones(number, 4)}
    return ImageEvidence(**{**vars(image), **more, "image_feature": torch.ones(4)})


@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("likeness", ["embeddings", "features"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_coverage_of_the_image(layout, likeness, power):
    image = scored(layout)
    total = max(1, round(0.4 * image.layout.num_tokens))
    if not power:
        total = min(total, 6)  # of so many dimensions; then nothing but rounding tells tokens of equal weight apart
    pruner = PaperTokenPruning(keep_tokens=total, choose="coverage", power=power, likeness=likeness, ranking="image")
    vectors = image.embeddings if likeness == "embeddings" else image.token_features
    weights = [max(value, 1e-6) ** power for value in fuse(image.encoder_attention, image.last_attention, 0.5).tolist()]
    slow = determinantal(vectors.tolist(), weights, list(range(len(weights))), total)
    assert pruner.checked_select(image).kept.tolist() == sorted(slow)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coverage_within_tiles(layout):
    image = scored(layout)
    total = max(1, round(0.4 * image.layout.num_tokens))
    pruner = PaperTokenPruning(keep_tokens=total, choose="coverage", thumbnail="region", power=0.5)
    weights = [max(value, 1e-6) ** 0.5 for value in fuse(image.encoder_attention, image.last_attention, 0.5).tolist()]
    kept = []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        kept += determinantal(image.embeddings.tolist(), weights, tokens, budget)
    assert pruner.checked_select(image).kept.tolist() == sorted(kept)


@pytest.mark.parametrize("choose", ["top", "coverage"])
@pytest.mark.parametrize("ranking", ["tile", "image"])
@pytest.mark.parametrize("thumbnail", ["ratio", "whole", "region"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_floor(layout, thumbnail, ranking, choose):
    image = scored(layout)
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(len(image.layout.regions), 4, generator=generator)
    image = ImageEvidence(**{**vars(image), "region_features": features})
    whole, sizes = image.layout.num_tokens, [len(tokens) for tokens in regions(image)]
    for total in {1, whole // 4, whole // 2, whole} - {0}:
        for floor in (0, 1, 2, 50):
            settings = {"choose": choose, "ranking": ranking, "thumbnail": thumbnail, "temperature": 0.2}
            kept = PaperTokenPruning(keep_tokens=total, floor=floor, **settings).checked_select(image).kept.tolist()
            assert len(set(kept)) == len(kept) == total
            least = min(floor, total // len(sizes), *sizes)
            if thumbnail == "whole" and ranking == "image":
                continue  # the whole thumbnail may leave nothing for floors
            assert min(len(set(kept) & set(tokens)) for tokens in regions(image)) >= least


def test_a_whole_thumbnail_is_given_to_coverage():
    image = scored("tiles, thumbnail last")
    thumbnail = regions(image)[-1]
    settings = {"choose": "coverage", "ranking": "image", "thumbnail": "whole"}
    for total in (len(thumbnail) - 3, len(thumbnail) + 5):
        kept = PaperTokenPruning(keep_tokens=total, **settings).checked_select(image).kept.tolist()
        assert set(kept) >= set(thumbnail[:total])


def test_constant_scores_leave_coverage_alone():
    image = scored("windows")
    flat = torch.full((image.layout.num_tokens,), 0.3)
    image = ImageEvidence(**{**vars(image), "encoder_attention": flat, "instruction_attention": flat})
    kept = PaperTokenPruning(keep_tokens=6, choose="coverage", ranking="image").select(image).kept.tolist()
    slow = determinantal(image.embeddings.tolist(), [1.0] * len(flat), list(range(len(flat))), 6)
    assert kept == sorted(slow)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflow_is_refused(bad):
    image = scored("windows")
    image.embeddings.view(-1)[3] = bad
    with pytest.raises(ValueError, match="embeddings holds NaN or infinite"):
        PaperTokenPruning(choose="coverage").select(image)
    assert "embeddings" not in PaperTokenPruning().needs
