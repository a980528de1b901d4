"""PTP's defaults: the question's neighbourhood, and tokens that are like none that scores higher, against loops."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptprune import PyramidTokenPruning
from ptprune.errors import Refused
from ptprune.layout import ImageLayout, Region
from ptprune.methods import METHODS
from ptprune.methods.distinct import distinct
from ptprune.scores import INSTRUCTION_SCORES, ImageEvidence
from ptprune.selection import fuse
from tests.methods.slow import best, counts, even, neighbourhood, ptp_scores, ptp_weights, regions
from tests.methods.test_coverage import random_set, scored
from tests.methods.test_rivals import LAYOUTS


@pytest.mark.parametrize("block", [1, 3 * 3 * 14, 2**24])
def test_counts(block, monkeypatch):
    """Ties by index, weights of zero, duplicates, and groups that do not see each other, in blocks of any size."""
    monkeypatch.setattr("ptprune.methods.distinct.BLOCK", block)
    sets = [random_set(14, 5, seed) for seed in range(3)]
    vectors, weights = (torch.stack(each) for each in zip(*sets, strict=True))
    vectors[1, 6:10] = vectors[1, 2]
    weights[1, 2], weights[1, 3:8] = 1.0, 0.7
    weights[2, :4] = 0
    found = distinct(vectors, weights)
    for group in range(3):
        slow = counts(vectors[group].tolist(), weights[group].tolist(), range(14))
        torch.testing.assert_close(found[group], torch.tensor(list(slow.values())), atol=1e-6, rtol=1e-5)
    assert found[1, 6:10].abs().max() < 1e-6, "a duplicate of a token that weighs more counts for nothing"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbourhood(layout):
    image = scored(layout)
    torch.testing.assert_close(INSTRUCTION_SCORES["neighbourhood"].compute(image), torch.tensor(neighbourhood(image)))


def test_neighbourhood_of_a_tile_with_gaps():
    """Tokens that were not encoded leave holes; those around them are as far apart as before."""
    image = scored("tiles, thumbnail last")
    left = torch.tensor([n for n in range(image.layout.num_tokens) if n % 3])
    gappy = image.instruction_attention.clone()
    gappy[::3] = 0
    slow = torch.tensor(neighbourhood(ImageEvidence(**{**vars(image), "instruction_attention": gappy})))[left]
    whole = image.layout
    layout = ImageLayout(
        0,
        whole.tokens[left],
        whole.regions,
        whole.region_of[left],
        list,
        unpruned=whole.num_tokens,
        cells=whole.cells_on_host()[left.numpy()],
    )
    found = INSTRUCTION_SCORES["neighbourhood"].compute(
        ImageEvidence(layout, instruction_attention=image.instruction_attention[left])
    )
    torch.testing.assert_close(found, slow)


def test_neighbourhood_of_tokens_that_nobody_can_place_is_refused():
    layout = ImageLayout(0, torch.arange(3), (Region((2, 2)),), torch.zeros(3, dtype=torch.long), list)
    with pytest.raises(Refused, match="in stages"):
        INSTRUCTION_SCORES["neighbourhood"].compute(ImageEvidence(layout, instruction_attention=torch.rand(3)))


@pytest.mark.smoke
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_defaults(layout):
    for seed in range(3):
        image = scored(layout, seed)
        weights = ptp_weights(ptp_scores(image))
        found = counts(image.embeddings.tolist(), weights, range(len(weights)))
        for ratio in (0.05, 0.25, 0.5, 0.9):
            total = max(1, round(ratio * len(weights)))
            kept = PyramidTokenPruning(keep_ratio=ratio).checked_select(image).kept.tolist()
            assert kept == sorted(best(list(found.values()), list(found), total))


@pytest.mark.parametrize("likeness", ["embeddings", "features"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_within_tiles(layout, likeness):
    image = scored(layout)
    total = max(1, round(0.4 * image.layout.num_tokens))
    pruner = PyramidTokenPruning(keep_tokens=total, ranking="tile", thumbnail="region", power=1.0, likeness=likeness)
    vectors, weights = (
        image.embeddings if likeness == "embeddings" else image.token_features,
        ptp_weights(ptp_scores(image), power=1),
    )
    kept = []
    for tokens, budget in zip(regions(image), even(image, total), strict=True):
        found = counts(vectors.tolist(), weights, tokens)
        kept += sorted(tokens, key=lambda i: (-found[i], i))[:budget]
    assert pruner.checked_select(image).kept.tolist() == sorted(kept)


@given(st.integers(0, 10**6), st.sampled_from(list(LAYOUTS)), st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_a_whole_thumbnail_comes_first_and_what_is_like_it_last(seed, layout, total):
    image = scored(layout, seed)
    total = min(total, image.layout.num_tokens)
    kept = PyramidTokenPruning(keep_tokens=total, thumbnail="whole").checked_select(image).kept.tolist()
    weights = ptp_weights(ptp_scores(image))
    thumbnail = [] if image.layout.thumbnail is None else regions(image)[image.layout.thumbnail]
    lifted = [weight + 10 * (i in thumbnail) for i, weight in enumerate(weights)]
    found = counts(image.embeddings.tolist(), lifted, range(len(weights)))
    rest = best([found[i] for i in range(len(weights))], [i for i in found if i not in thumbnail], total)
    if len(thumbnail) <= total:
        assert kept == sorted([*thumbnail, *rest[: total - len(thumbnail)]])
    else:
        assert set(kept) <= set(thumbnail)


def test_the_paper_is_one_word_away():
    """Other defaults, and nothing else: given the same settings, both keep the same."""
    names = [field.name for field in fields(PyramidTokenPruning)]
    ours, paper = METHODS["ptp"](), METHODS["ptp-paper"]()
    assert [name for name in names if getattr(ours, name) != getattr(paper, name)] == [
        "region",
        "instruction",
        "alpha",
        "ranking",
        "choose",
        "first_ratio",
    ]
    image = scored("tiles, thumbnail last")
    same = {name: getattr(paper, name) for name in ("region", "instruction", "alpha", "ranking", "choose")}
    assert torch.equal(paper.select(image).kept, PyramidTokenPruning(**same).select(image).kept)
    fused = fuse(image.encoder_attention, image.instruction_attention, 0.5).tolist()
    budgets = even(image, image.layout.num_tokens // 2)
    kept = [i for tokens, number in zip(regions(image), budgets, strict=True) for i in best(fused, tokens, number)]
    assert np.array_equal(paper.select(image).kept, sorted(kept))
