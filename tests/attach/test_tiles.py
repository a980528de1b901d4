"""Tiles that are left out are never encoded, and all else is as the stock model has it that ignores their tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ptprune import METHODS, PyramidTokenPruning, RandomPruning, TileCache
from ptprune.errors import AttachError, Refused, SettingError
from ptprune.scores.tiles import TILE_SCORES, TileEvidence, choose_tiles
from tests.exact import Choice, assert_exact, assert_untouched, follow_up, ignoring, recording
from tests.towers import missing, missing_of, tiles_of, watched
from tests.versions import mode_items
from tests.zoo import ZOO, inputs_of, model_of

TILED = [name for name, specimen in ZOO.items() if not specimen.native]
NATIVE = [name for name, specimen in ZOO.items() if specimen.native]
PROMPTS = ["one picture", "small picture", "several pictures", "batch", "batch of several pictures", "no text after"]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_exact(name, prompt, layer):
    model, inputs = model_of(name), inputs_of(name, prompt)
    pruner = recording(PyramidTokenPruning, layer=layer, tiles=1, keep_ratio=0.2)
    gone = missing(ZOO[name], model, inputs, pruner)
    several = any(image.tiles > 2 for image in inputs.layout)
    assert several == bool(gone.any())
    report = assert_exact(model, inputs, pruner, missing=gone)
    assert not report.kept_mask[gone].any()
    before, encoded = report.encoded_tokens
    assert before - encoded == int(gone.sum())
    for image in report.images:
        assert len(image.kept) == min(max(1, round(0.2 * image.num_tokens)), image.encoded_tokens)
        assert image.encoded_tiles == min(len(image.regions), 2)


@pytest.mark.parametrize("score", TILE_SCORES.names)
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_exact_whatever_chooses(name, score):
    model, inputs = model_of(name), inputs_of(name, "batch of several pictures")
    pruner = recording(PyramidTokenPruning, tiles="salient", tile_score=score, tile_threshold=0.9, keep_ratio=0.2)
    gone = missing(ZOO[name], model, inputs, pruner)
    assert gone.any()
    report = assert_exact(model, inputs, pruner, tokens=2, missing=gone)
    for image in report.images:
        for region in image.regions:
            assert (region.tile_score is None) == (region.is_thumbnail or len(image.regions) == 1)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_exact_with_every_method(method):
    model, inputs = ZOO["internvl"].build(layers=6), inputs_of("internvl", "batch of several pictures")
    settings = {"stages": 2} if method == "pyramiddrop" else {}
    pruner = recording(METHODS[method], tiles=2, keep_ratio=0.2, **settings)
    gone = missing(ZOO["internvl"], model, inputs, pruner)
    assert gone.any()
    assert_exact(model, inputs, pruner, missing=gone)


MODES = {
    "beams": {"num_beams": 3},
    "two returns": {"num_beams": 4, "num_return_sequences": 2},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("mode", mode_items(MODES))
@pytest.mark.parametrize("name", ["internvl", "llava-next", "gemma3", "smolvlm"])
@torch.no_grad()
def test_exact_in_every_mode(name, mode, layer):
    model = model_of(name)
    inputs = inputs_of(name, "one picture" if mode == "lookup" else "batch")
    pruner = recording(PyramidTokenPruning, layer=layer, tiles=1, keep_ratio=0.2)
    gone = missing(ZOO[name], model, inputs, pruner)
    assert_exact(model, inputs, pruner, missing=gone, **MODES[mode])


@torch.no_grad()
def test_exact_without_a_cache_and_with_compact_positions():
    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    once = {"layer": 0, "first_ratio": 0}
    for settings, options in ((once, {"use_cache": False}), ({"positions": "compact"}, {})):
        pruner = recording(PyramidTokenPruning, tiles=1, keep_ratio=0.2, **settings)
        assert_exact(model, inputs, pruner, missing=missing(ZOO["internvl"], model, inputs, pruner), **options)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_exact_in_a_second_turn_with_a_picture(layer):
    specimen, model = ZOO["internvl"], model_of("internvl")
    first, row = specimen.inputs(specimen.prompts["one picture"]), specimen.prompts["no text after"][0]
    pruner = recording(PyramidTokenPruning, tiles=1, keep_ratio=0.2, layer=layer)
    mask = first["attention_mask"].bool()
    with pruner(model), watched(model) as seen:
        answer = model.generate(**first, max_new_tokens=4, return_dict_in_generate=True)
    gone = missing_of(specimen, model, first, seen)
    choice = Choice.of(pruner, model, mask, missing=gone)
    pruner.__dict__["seen"] = []
    turn, whole = follow_up(specimen, model, first, answer.sequences, row)
    with pruner(model), watched(model) as seen:
        pruned = model.generate(**turn, past_key_values=answer.past_key_values, max_new_tokens=6)
    second = specimen.inputs([row])
    gone = missing_of(specimen, model, second, seen)
    length, end, new = turn["input_ids"].shape[1], mask.shape[1], second["input_ids"].shape[1]
    kept = pruner.report.kept_mask
    gone = F.pad(gone, (kept.shape[1] - new, 0))
    choice = choice.moved(0, length - end)
    choice |= Choice.of(pruner, model, torch.ones_like(kept), missing=gone).moved(length - kept.shape[1], 0)
    ends = torch.full((length,), length)
    ends[:end] = end
    with ignoring(model, choice, turn["attention_mask"], ends):
        stock = model.generate(**whole, max_new_tokens=6, use_cache=False)
    assert torch.equal(pruned, stock)


@pytest.mark.parametrize("settings", [{"tiles": 1}, {"tiles": "salient", "tile_threshold": 1.0}])
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_the_quietest_tile_stands_for_those_that_are_left_out(name, settings):
    """As if every such tile had its pixels."""
    model, inputs = model_of(name), inputs_of(name, "batch of several pictures")
    pruner = PyramidTokenPruning(left_out="background", keep_ratio=0.4, **settings)
    with pruner(model), watched(model) as seen:
        pruned = model(**inputs).logits
    given, tiles, row, report = torch.cat(seen), tiles_of(ZOO[name], inputs), 0, pruner.report
    changed = tiles.clone()
    for truth, image in zip(inputs.layout, report.images, strict=True):
        assert len(image.kept) == max(1, round(0.4 * image.num_tokens))
        mine = [row + t for t in range(truth.tiles) if t != truth.thumbnail]
        row += truth.tiles
        scores = [region.tile_score for region in image.regions if not region.is_thumbnail]
        if truth.thumbnail is None or len(scores) < len(mine):
            continue
        quietest = mine[scores.index(min(scores))]
        for tile in mine:
            if not (given == tiles[tile]).flatten(1).all(1).any():
                changed[tile] = tiles[quietest]
    assert (len(given) < len(tiles)) == any(image.tiles > 3 for image in inputs.layout)
    assert report.encoded_tiles[1] == len(given)
    same = dict(inputs)
    if inputs["pixel_values"].ndim == 4:
        same["pixel_values"] = changed
    else:
        pixels, at = inputs["pixel_values"].clone(), 0
        flat = pixels.flatten(0, 1)
        real = flat.flatten(1).any(1)
        flat[real] = changed if not name.startswith("llava") else flat[real]
        if name.startswith("llava"):
            for number, image in enumerate(inputs.layout):
                pixels[number, : image.tiles] = changed[at : at + image.tiles]
                at += image.tiles
        same["pixel_values"] = pixels
    with (plain := PyramidTokenPruning(keep_ratio=0.4))(model):
        expected = model(**same).logits
    assert torch.equal(report.kept_mask, plain.report.kept_mask)
    torch.testing.assert_close(pruned, expected, atol=5e-5, rtol=0)


@torch.no_grad()
def test_everything_stays_that_was_encoded():
    """No token is chosen, and what was left out is gone all the same."""
    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    for settings in ({"keep_ratio": 1}, {"keep_tokens": 10**6}):
        for layer in (0, 2):
            pruner = PyramidTokenPruning(tiles=1, layer=layer, **settings)
            gone = missing(ZOO["internvl"], model, inputs, pruner)
            with pruner(model):
                pruned = model(**inputs).logits
            mask = inputs["attention_mask"].bool()
            assert torch.equal(pruner.report.kept_mask, mask & ~gone)
            with ignoring(model, Choice((0,), [gone], {}), mask):
                stock = model(**inputs).logits
            assert (pruned - stock)[mask & ~gone].abs().max() <= 5e-5


@torch.no_grad()
def test_the_report_tells():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    pruner = PyramidTokenPruning(tiles=2, keep_ratio=0.9, region="cls-similarity")
    with pruner(model):
        model(**inputs)
    report = pruner.report
    [image] = report.images
    assert report.encoded_tiles == (len(image.regions), 3)
    assert f"3 of {len(image.regions)} tiles encoded" in str(report)
    assert len(image.kept) == image.encoded_tokens == 12 < round(0.9 * image.num_tokens), "capped"
    best = sorted((r.tile_score for r in image.regions if not r.is_thumbnail), reverse=True)[:2]
    assert {r.tile_score for r in image.regions if r.encoded and not r.is_thumbnail} == set(best)
    for region in image.regions:
        assert (region.saliency is not None) == bool(region.encoded)
        if not region.encoded:
            assert not image.scores["fused"][region.indices].any()
    assert report.to_dict()["encoded_tiles"] == [len(image.regions), 3]
    with (pruner := PyramidTokenPruning())(model):
        model(**inputs)
    assert "encoded" not in str(pruner.report)


@torch.no_grad()
def test_features_of_tiles_that_were_left_out_are_never_looked_at(monkeypatch):
    """The choice is the same whatever is in their places."""
    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    pruner, kept = PyramidTokenPruning(tiles=1, keep_ratio=0.3, region="cls-similarity"), []
    for filled in (0.0, 1e4, torch.nan):
        monkeypatch.setattr(
            "ptprune.attach.rows.blank", lambda values, rows, f=filled: values.new_full((rows, *values.shape[1:]), f)
        )
        with pruner(model):
            output = model(**inputs)
        kept.append((pruner.report.kept_mask, output.logits[:, -1]))
    for mask, logits in kept[1:]:
        assert torch.equal(mask, kept[0][0])
        assert torch.equal(logits, kept[0][1])


@torch.no_grad()
def test_without_a_prompt_everything_is_encoded():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    stock = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    with PyramidTokenPruning(tiles=1)(model):
        assert torch.equal(model.model.get_image_features(inputs["pixel_values"]).pooler_output, stock)


def test_gradients_reach_the_pixels_of_encoded_tiles_alone():
    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    pixels = inputs["pixel_values"].clone().requires_grad_()
    with (pruner := PyramidTokenPruning(tiles=1))(model):
        model(**{**inputs, "pixel_values": pixels}).logits[:, -1].sum().backward()
    [image] = pruner.report.images
    assert pixels.grad.flatten(1).any(1).tolist() == [region.encoded > 0 for region in image.regions]


# --- groups, equal tiles, the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_tiles_are_encoded_in_groups(name, size):
    model, inputs = model_of(name), inputs_of(name, "batch of several pictures")
    plain, grouped = PyramidTokenPruning(keep_ratio=0.3), PyramidTokenPruning(keep_ratio=0.3, tile_batch=size)
    with plain(model):
        expected = model(**inputs).logits
    with grouped(model), watched(model) as seen:
        found = model(**inputs).logits
    assert max(map(len, seen)) == min(size, len(tiles_of(ZOO[name], inputs)))
    assert torch.equal(torch.cat(seen), tiles_of(ZOO[name], inputs))
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert torch.equal(grouped.report.kept_mask, plain.report.kept_mask)


@torch.no_grad()
def test_groups_as_large_as_the_call_change_no_bit():
    model, inputs = model_of("internvl"), inputs_of("internvl", "batch")
    assert_untouched(model, inputs, PyramidTokenPruning(keep_ratio=1, tile_batch=100))


def twins():
    """Inputs whose second and third tile are the same."""
    inputs = dict(inputs_of("internvl", "one picture"))
    inputs["pixel_values"] = inputs["pixel_values"].clone()
    inputs["pixel_values"][2] = inputs["pixel_values"][1]
    return inputs


@torch.no_grad()
def test_equal_tiles_are_encoded_once():
    model, inputs = model_of("internvl"), twins()
    plain, pruner = PyramidTokenPruning(), PyramidTokenPruning(tiles=100)
    with plain(model):
        expected = model(**inputs).logits
    with pruner(model), watched(model) as seen:
        found = model(**inputs).logits
    assert sum(map(len, seen)) == len(inputs["pixel_values"]) - 1
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)
    assert torch.equal(pruner.report.kept_mask, plain.report.kept_mask)


@torch.no_grad()
def run(model, pruner, cache, inputs):
    """Logits, and how many tiles were encoded."""
    with pruner(model, tile_cache=cache), watched(model) as seen:
        logits = model(**inputs).logits
    return logits, sum(map(len, seen))


@pytest.mark.parametrize("settings", [{}, {"tiles": 2}, {"vision_layer": 1, "keep_ratio": 0.3}, {"keep_ratio": 1}])
@pytest.mark.parametrize("name", TILED)
def test_a_tile_is_encoded_once_in_all_calls(name, settings):
    if "vision_layer" in settings and (name.startswith("llava")):
        pytest.skip("the tower of this specimen is too short, or mixes patches")
    model, cache, pruner = ZOO[name].build(), TileCache(10**8), PyramidTokenPruning(**settings)
    inputs = inputs_of(name, "batch of several pictures")
    first, encoded = run(model, pruner, cache, inputs)
    report = pruner.report
    again, more = run(model, pruner, cache, inputs)
    assert encoded > more == 0
    torch.testing.assert_close(again, first, atol=5e-5, rtol=0)
    assert torch.equal(pruner.report.kept_mask, report.kept_mask)
    with pruner(model), torch.no_grad():
        torch.testing.assert_close(first, model(**inputs).logits, atol=5e-5, rtol=0)


def test_what_changes_is_encoded_again():
    model, cache, pruner = ZOO["internvl"].build(), TileCache(10**8), PyramidTokenPruning(keep_ratio=0.3)
    inputs = dict(inputs_of("internvl", "one picture"))
    tiles = len(inputs["pixel_values"])
    assert run(model, pruner, cache, inputs)[1] == tiles
    changed = inputs["pixel_values"].clone()
    changed[1, 0, 3, 5] = torch.nextafter(changed[1, 0, 3, 5], torch.tensor(9.0))
    assert run(model, pruner, cache, {**inputs, "pixel_values": changed})[1] == 1, "the smallest change of a pixel"
    with torch.no_grad():
        model.model.vision_tower.encoder.layer[1].mlp.fc1.weight.mul_(2)
    logits, encoded = run(model, pruner, cache, inputs)
    assert encoded == tiles, "other weights"
    with torch.no_grad(), pruner(model):
        torch.testing.assert_close(logits, model(**inputs).logits)
    assert run(model, PyramidTokenPruning(token="received-attention"), cache, inputs)[1] == tiles, "other evidence"
    assert run(ZOO["internvl"].build(), pruner, cache, inputs)[1] == tiles, "another model"
    assert run(model.to(torch.float64), pruner, cache, inputs)[1] == tiles, "another dtype"


def test_the_cache_forgets_what_was_used_least_recently():
    model, pruner = ZOO["internvl"].build(), PyramidTokenPruning(keep_ratio=0.3)
    cache, inputs = TileCache(10**8), dict(inputs_of("internvl", "one picture"))
    run(model, pruner, cache, inputs)
    one, tiles = cache.bytes // len(cache), len(cache)
    assert tiles == len(inputs["pixel_values"])
    small = TileCache(one * (tiles - 1))
    run(model, pruner, small, inputs)
    assert (len(small), small.bytes) == (tiles - 1, one * (tiles - 1))
    alone = {**inputs_of("internvl", "small picture"), "pixel_values": inputs["pixel_values"][:1]}
    assert run(model, pruner, small, alone)[1] == 1, "the first one was forgotten"
    assert run(model, pruner, small, alone)[1] == 0
    assert run(model, pruner, TileCache(one - 1), inputs)[1] == tiles, "a tile larger than the cache"
    small.clear()
    assert (len(small), small.bytes) == (0, 0)
    for size in (0, 1.5, True, "big"):
        with pytest.raises(SettingError, match="max_bytes"):
            TileCache(size)


def test_gradients_pass_the_cache_by():
    model, cache, pruner = ZOO["internvl"].build(), TileCache(10**8), PyramidTokenPruning()
    inputs = inputs_of("internvl", "one picture")
    run(model, pruner, cache, inputs)
    with pruner(model, tile_cache=cache):
        model(**inputs).logits[:, -1].sum().backward()
    assert model.model.vision_tower.embeddings.cls_token.grad.any()


def test_one_attachment_has_one_cache():
    model, pruner = ZOO["internvl"].build(), PyramidTokenPruning()
    cache = TileCache(100)
    with pruner(model, tile_cache=cache):
        with pruner(model, tile_cache=cache):
            pass
        with pytest.raises(AttachError, match="another tile cache"), pruner(model):
            pass


# --- which tiles ------------------------------------------------------------------------------------------------------


def slow_detail(tiles):
    """One number a tile, in loops."""
    height, width = tiles.shape[-2:]
    blocks, shrunk = min(16, height), math.sqrt(len(tiles))
    size, errors = (max(1, round(height / shrunk)), max(1, round(width / shrunk))), []
    for tile in tiles.double():
        small = F.interpolate(tile[None], size=size, mode="area")
        error = (tile - F.interpolate(small, size=(height, width), mode="bilinear")[0]).abs().mean(0)
        edges = [(math.floor(b * height / blocks), math.ceil((b + 1) * height / blocks)) for b in range(blocks)]
        errors.append(sorted(float(error[a:b, c:d].mean()) for a, b in edges for c, d in edges))
    background = min(each[math.ceil(0.75 * len(each)) - 1] for each in errors)
    flat = [sum(min(error, background) for error in each[:8]) / len(each[:8]) for each in errors]
    more = [max(0.0, sum(each[-8:]) / len(each[-8:]) - background) for each in errors]
    detail = [above + max(flat) - below for above, below in zip(more, flat, strict=True)]
    return [each if each > 1e-5 else 0.0 for each in detail]


@pytest.mark.parametrize("name", TILED)
@torch.no_grad()
def test_detail_is_its_formula(name):
    model, inputs = model_of(name), inputs_of(name, "batch of several pictures")
    with (pruner := RandomPruning(tiles=1, tile_threshold=0))(model):
        model(**inputs)
    row, tiles = 0, tiles_of(ZOO[name], inputs)
    for truth, image in zip(inputs.layout, pruner.report.images, strict=True):
        mine = [row + t for t in range(truth.tiles) if t != truth.thumbnail]
        row += truth.tiles
        scores = [region.tile_score for region in image.regions if not region.is_thumbnail]
        if truth.thumbnail is not None and len(scores) == len(mine):  # unpadding may leave nothing of a tile
            assert scores == pytest.approx(slow_detail(tiles[mine]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "tiles", "threshold", "chosen"),
    [
        ([3, 1, 2], "all", 0.1, [0, 1, 2]),
        ([3, 1, 2], 2, 0.1, [0, 2]),
        ([1, 1, 1], 2, 0.1, [0, 1]),  # ties by index
        ([3, 1, 2], 9, 0.1, [0, 1, 2]),
        ([10, 1, 0.9], "salient", 0.1, [0, 1]),
        ([10, 1, 0], "salient", 0.0, [0, 1]),  # nothing to see
        ([0, 0], "salient", 0.1, []),
        ([2, 2], "salient", 1.0, [0, 1]),
        ([], "salient", 0.1, []),
    ],
)
def test_the_choice(scores, tiles, threshold, chosen):
    assert [i for i, each in enumerate(choose_tiles(scores, tiles, threshold)) if each] == chosen


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(Refused, match="NaN"):
        choose_tiles([1.0, math.nan], "salient", 0.1)


@torch.no_grad()
def test_a_picture_without_detail_needs_its_thumbnail_alone():
    model, inputs = model_of("internvl"), dict(inputs_of("internvl", "one picture"))
    inputs["pixel_values"] = torch.full_like(inputs["pixel_values"], 0.3)
    with (pruner := PyramidTokenPruning(tiles="salient"))(model):
        model(**inputs)
    [image] = pruner.report.images
    assert [region.is_thumbnail for region in image.regions if region.encoded] == [True]


def test_what_is_flat_on_noise_is_detail():
    tiles = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tiles[3, :, 20:44, 20:44] = 0.5
    scores = TILE_SCORES["detail"].compute(TileEvidence(tiles, lambda: None)).tolist()
    assert choose_tiles(scores, "salient", 0.5) == [False, False, False, True, False, False]


@torch.no_grad()
def test_random_is_detail_in_another_order_and_repeats():
    model, inputs = model_of("internvl"), inputs_of("internvl", "several pictures")

    def scores(name):
        with (pruner := RandomPruning(tiles=1, tile_score=name))(model):
            model(**inputs)
        return [
            [region.tile_score for region in image.regions if not region.is_thumbnail] for image in pruner.report.images
        ]

    detail, drawn = scores("detail"), scores("random")
    assert drawn == scores("random") != detail
    for one, other in zip(detail, drawn, strict=True):
        assert sorted(map(str, one)) == sorted(map(str, other))


@torch.no_grad()
def test_a_score_of_ones_own(monkeypatch):
    monkeypatch.setattr(TILE_SCORES, "_scores", dict(TILE_SCORES._scores))

    @TILE_SCORES.register("last")
    def last(image):
        """The last tiles."""
        return torch.arange(image.num_tiles, device=image.device, dtype=torch.float32)

    model, inputs = model_of("internvl"), inputs_of("internvl", "one picture")
    with (pruner := PyramidTokenPruning(tiles=1, tile_score="last"))(model):
        model(**inputs)
    [image] = pruner.report.images
    assert [region.encoded > 0 for region in image.regions] == [False] * (len(image.regions) - 2) + [True, True]


@pytest.mark.parametrize("name", NATIVE)
def test_families_without_tiles_are_refused_by_name(name):
    model = model_of(name)
    for settings in ({"tiles": "salient"}, {"tiles": 3}, {"tile_batch": 2}):
        with pytest.raises(Refused, match=f"{next(iter(settings))}.*{name}"):
            RandomPruning(**settings).attach(model)
    with pytest.raises(Refused, match=f"tile cache.*{name}"):
        RandomPruning().attach(model, tile_cache=TileCache(10))


@pytest.mark.parametrize("method", ["hired", "globalcom2", "uniform-grid"])
def test_methods_that_need_whole_tiles_are_refused_by_name(method):
    with pytest.raises(Refused, match="vision_layer.*whole tiles"):
        METHODS[method](vision_layer=1).attach(model_of("internvl"))
    with pytest.raises(Refused, match="vision_layer"):
        PyramidTokenPruning(vision_layer=1, region="attention-mass").attach(model_of("internvl"))
    with pytest.raises(SettingError, match="vision_layer"):
        PyramidTokenPruning(vision_layer=1, coverage=0.9)
