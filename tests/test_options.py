"""PTP's options, each against its formula written out plainly."""

from __future__ import annotations

import pytest
import torch

from ptprune.layout import THUMBNAIL, ImageLayout, Place, Region, even_place
from ptprune.methods.pyramid import PaperTokenPruning
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES, ImageEvidence
from ptprune.scores.region import region_weights

# Two rows of three tiles of 2x3 tokens and a thumbnail, which comes last, first, or not at all.
SHAPES = ["last", "first", "none", "single"]


def image_of(shape: str, **evidence: torch.Tensor) -> ImageEvidence:
    tiles = 1 if shape == "single" else 6
    regions = [Region((2, 3)) for _ in range(tiles)]
    places = [even_place(*divmod(tile, 3), 2, 3) if tiles > 1 else even_place(0, 0, 1, 1) for tile in range(tiles)]
    if shape in ("first", "last"):
        where = 0 if shape == "first" else tiles
        regions.insert(where, Region((3, 2), is_thumbnail=True))
        places.insert(where, THUMBNAIL)
    region_of = torch.arange(len(regions)).repeat_interleave(6)
    if shape == "none":  # rows run through neighbouring windows
        grid = torch.arange(6).view(2, 1, 3, 1).expand(2, 2, 3, 3)
        region_of = grid.flatten()
    layout = ImageLayout(0, torch.arange(len(region_of)), tuple(regions), region_of, lambda: places)
    return ImageEvidence(layout, **evidence)


def random(image: ImageEvidence, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(image.layout.num_tokens, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", ["last", "first"])
def test_attention_mass_integrates_the_thumbnail_over_each_tile(shape):
    image = image_of(shape)
    attention = random(image)
    image = image_of(shape, encoder_attention=attention)
    thumbnail = image.layout.thumbnail
    picture = attention[image.layout.region_of == thumbnail].view(3, 2)
    fine = picture.repeat_interleave(60, 0).repeat_interleave(90, 1)  # 180 x 180, divided by 2 rows and 3 columns
    expected = []
    for place in image.layout.places():
        left, top, right, bottom = (round(180 * edge) for edge in place.box)
        expected.append(fine[top:bottom, left:right].mean())
    torch.testing.assert_close(REGION_SCORES["attention-mass"].compute(image), torch.stack(expected))


def test_attention_mass_of_windows_is_that_of_their_own_tokens():
    image = image_of("none")
    image = image_of("none", encoder_attention=random(image))
    expected = [image.encoder_attention[image.layout.region_of == window].mean() for window in range(6)]
    torch.testing.assert_close(REGION_SCORES["attention-mass"].compute(image), torch.stack(expected))


@pytest.mark.parametrize("shape", ["last", "first", "none"])
def test_image_saliency_finds_the_one_tile_with_an_object(shape):
    pytest.importorskip("cv2", reason="opencv-contrib-python-headless is not installed")
    pixels = torch.full((3, 64, 66), -1.0)
    pixels[0, 40:56, 26:40] = 2.0  # in the second row, second column
    image = image_of(shape, pixels=pixels)
    scores = REGION_SCORES["image-saliency"].compute(image)
    best = max((i for i, region in enumerate(image.layout.regions) if not region.is_thumbnail), key=scores.__getitem__)
    assert image.layout.places()[best] == Place(1, 1, image.layout.places()[best].box)


def test_image_saliency_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        REGION_SCORES["image-saliency"].compute(image_of("last", pixels=torch.rand(3, 8, 8)))


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_is_what_autograd_says(shape):
    image = image_of(shape)
    features = random(image, 5).sub(0.3).requires_grad_()
    image = image_of(shape, token_features=features)
    region_of, thumbnail = image.layout.region_of, image.layout.thumbnail
    expected = torch.zeros(len(features))
    for region in range(len(image.layout.regions)):
        mine = features[region_of == region]
        if len(image.layout.regions) == 1:
            value = mine.mean(0).norm()
        else:
            other = features.detach()
            if region == thumbnail:
                other = other[region_of != thumbnail]
            elif thumbnail is not None:
                other = other[region_of == thumbnail]
            value = torch.cosine_similarity(mine.mean(0), other.mean(0), dim=0)
        (gradient,) = torch.autograd.grad(value, features)
        expected += (gradient * features).sum(1).detach() * (region_of == region)
    scores = TOKEN_SCORES["gradient"].compute(image)
    torch.testing.assert_close(scores.detach(), expected)
    assert scores[region_of == region].unique().numel() == 6, "the last region, be it the thumbnail, has a gradient too"


def test_activation_received_and_embedding():
    image = image_of("last")
    features, received, visual = random(image, 5), random(image, seed=1), random(image, 4, seed=2) - 0.5
    text = torch.rand(3, 4) - 0.5
    image = image_of(
        "last", token_features=features, received_attention=received, embeddings=visual, instruction_embeddings=text
    )
    expected = features.square().sum(1).sqrt()
    torch.testing.assert_close(TOKEN_SCORES["activation"].compute(image), expected)
    assert torch.equal(TOKEN_SCORES["received-attention"].compute(image), received)
    cosines = [[torch.cosine_similarity(v, t, dim=0) for t in text] for v in visual]
    expected = torch.tensor([max(row) for row in cosines])
    torch.testing.assert_close(INSTRUCTION_SCORES["embedding"].compute(image), expected)
    nothing = image_of("last", embeddings=visual, instruction_embeddings=text[:0])
    assert not INSTRUCTION_SCORES["embedding"].compute(nothing).any()


@pytest.mark.parametrize("thumbnail", ["ratio", "region", "whole"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_ranking_over_the_image(shape, thumbnail):
    image = image_of(shape)
    scores = random(image)
    saliency = torch.rand(len(image.layout.regions), 3)
    image = image_of(shape, encoder_attention=scores, region_features=saliency, image_feature=saliency[-1])
    pruner = PaperTokenPruning(alpha=0, ranking="image", thumbnail=thumbnail, keep_ratio=0.5)
    selection = pruner.checked_select(image)
    number, small = image.layout.num_tokens, image.layout.thumbnail
    value = (scores - scores.min()) / (scores.max() - scores.min())
    if shape != "single":
        similarity = torch.cosine_similarity(saliency, saliency[-1:], dim=-1)
        tiles = [i for i in range(len(similarity)) if i != small or thumbnail == "region"]
        weights = dict(
            zip(tiles, [w * len(tiles) for w in region_weights(similarity[tiles].tolist(), 1.0)], strict=True)
        )
        value = torch.tensor([v * weights.get(int(r), 1) for v, r in zip(value, image.layout.region_of, strict=True)])
        if small is not None and thumbnail == "whole":
            value[image.layout.region_of == small] = 1e9
    best = sorted(range(number), key=lambda i: (-value[i].item(), i))[: round(number / 2)]
    assert selection.kept.tolist() == sorted(best)


@pytest.mark.parametrize(("bounds", "expected"), [((0.0, 1.0), None), ((0.5, 1.0), 21), ((0.0, 0.1), 4)])
def test_coverage_within_bounds(bounds, expected):
    image = image_of("last")
    scores = random(image)
    image = image_of("last", encoder_attention=scores)
    pruner = PaperTokenPruning(alpha=0, region="uniform", coverage=0.5, coverage_bounds=bounds)
    kept = len(pruner.checked_select(image).kept)
    free = len(PaperTokenPruning(alpha=0, region="uniform", coverage=0.5).checked_select(image).kept)
    assert 4 < free < 21
    assert kept == (free if expected is None else expected)


@pytest.mark.parametrize("setting", [{"ranking": "tiles"}, {"coverage_bounds": (0.5, 0.1)}, {"coverage_bounds": 0.5}])
def test_bad_values(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be"):
        PaperTokenPruning(**setting)


def test_a_score_from_outside_the_package():
    try:

        @TOKEN_SCORES.register("last-first", needs=())
        def last_first(image: ImageEvidence) -> torch.Tensor:
            """Later tokens first."""
            return torch.arange(image.layout.num_tokens).float()

        pruner = PaperTokenPruning(token="last-first", region="uniform", alpha=0, keep_tokens=1)
        assert pruner.checked_select(image_of("single")).kept.tolist() == [5]
        with pytest.raises(ValueError, match="exists already"):
            TOKEN_SCORES.register("last-first")(last_first)
    finally:
        TOKEN_SCORES._scores.pop("last-first")
