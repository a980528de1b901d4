"""The rivals against their own formulas in loops, on evidence made by hand; tests/attach/test_matrix.py has models."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ptprune.layout import THUMBNAIL, ImageLayout, Place, Region
from ptprune.methods import METHODS, DivPrune, HiRED, VisionZip
from ptprune.methods.uniform_grid import even_cells
from ptprune.scores import ImageEvidence
from ptprune.scores.thumbnail import attention_shares, guiding, seen_from_thumbnail
from tests.methods.slow import SLOW, check, regions, tops_set

RIVALS = list(SLOW)
OPTIONS = {
    "vispruner": [{"important_ratio": 0.0}, {"important_ratio": 0.3}, {"important_ratio": 1.0}],
    "hired": [{"alpha": 0.0}, {"alpha": 0.2}, {"alpha": 1.0}],
    "globalcom2": [{"temperature": 0.05}],
    "visionzip": [{"contextual_ratio": 0.0}, {"contextual_ratio": 0.5}, {"contextual_ratio": 1.0}],
    "dart": [{"pivots": 1}, {"pivots": 3}],
    "scope": [{"alpha": 0.5}, {"alpha": 2.0}],
}
SETTINGS = [(name, more) for name in RIVALS for more in ({}, *OPTIONS.get(name, ()))]


def spread(rows, columns, thumbnail):
    """Tiles of ``rows`` x ``columns`` tokens (a list for each axis) in one grid, row by row over neighbouring tiles."""
    grids = [(height, width) for height in rows for width in columns]
    order = [
        (y_tile * len(columns) + x_tile)
        for y_tile, height in enumerate(rows)
        for _ in range(height)
        for x_tile, width in enumerate(columns)
        for _ in range(width)
    ]
    edges = [[sum(axis[:i]) / sum(axis) for i in range(len(axis) + 1)] for axis in (rows, columns)]
    places = [
        Place(y, x, (edges[1][x], edges[0][y], edges[1][x + 1], edges[0][y + 1]))
        for y in range(len(rows))
        for x in range(len(columns))
    ]
    found = [Region(grid) for grid in grids]
    if thumbnail is None:
        return found, order, places
    size = thumbnail[0] * thumbnail[1]
    return [Region(thumbnail, True), *found], [0] * size + [r + 1 for r in order], [THUMBNAIL, *places]


def stacked(rows, columns, tile, thumbnail):
    """Tiles one after the other, the thumbnail last."""
    found, _, places = spread([tile[0]] * rows, [tile[1]] * columns, None)
    order = [number for number, region in enumerate(found) for _ in range(region.num_tokens)]
    order += [len(found)] * (thumbnail[0] * thumbnail[1])
    return [*found, Region(thumbnail, True)], order, [*places, THUMBNAIL]


LAYOUTS = {
    "tiles, thumbnail last": stacked(2, 3, (3, 3), (4, 4)),
    "thumbnail first, rows through tiles": spread([2, 4], [4, 3, 1], (4, 5)),
    "one region": spread([5], [6], None),
    "windows": spread([3, 4], [4, 4, 3], None),
    "one token": spread([1], [1], None),
}
SCORES = ("encoder_attention", "last_attention")


def image_of(name, fill):
    """Evidence whose tensors ``fill(*shape)`` makes."""
    found, order, places = LAYOUTS[name]
    number = len(order)
    layout = ImageLayout(0, torch.arange(number), tuple(found), torch.tensor(order), lambda: places)
    return ImageEvidence(
        layout,
        encoder_attention=fill(number).abs(),
        last_attention=fill(number).abs(),
        token_features=fill(number, 6),
        instruction_map=fill(5, number).abs(),
        embeddings=fill(number, 7),
        instruction_embeddings=fill(5, 7),
        hidden_states=fill(number, 7),
    )


def random_image(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return image_of(name, lambda *shape: torch.randn(*shape, generator=generator))


def tied_image(name, seed, values=3):
    """Evidence full of exact ties: whole numbers as scores, unit vectors along the axes as features."""
    generator = torch.Generator().manual_seed(seed)

    def fill(*shape):
        if len(shape) == 1 or shape[1] > 7 or shape == (5, 1):
            return torch.randint(0, values, shape, generator=generator).float()
        axes = torch.randint(0, shape[1], shape[:1], generator=generator)
        return F.one_hot(axes, shape[1]).float() * 2 ** torch.randint(0, 2, (shape[0], 1), generator=generator)

    image = image_of(name, fill)
    words = torch.randn(5, 7, generator=generator)  # which words rate is decided by a mean, which has no exact ties
    return ImageEvidence(**{**vars(image), "instruction_embeddings": words})


def only(image, names):
    """The evidence that a method asks for and nothing else."""
    return ImageEvidence(image.layout, **{name: getattr(image, name) for name in names})


@pytest.mark.smoke
def test_every_rival_is_registered():
    staged = ["pyramiddrop", "tops"]  # their slow twins are in tests/attach/test_stages.py and below
    assert [name for name in METHODS if name not in staged] == ["ptp", "ptp-paper", "random", *RIVALS]
    for name in METHODS.keys() - {"ptp", "ptp-paper", "random"}:
        pruner = METHODS[name]()
        assert pruner.layer == (2 if name in ("uniform-grid", "fastv", "dart", "sparsevlm", "pyramiddrop") else 0)
        about, _, rest = METHODS[name].__doc__.partition("\n\n")
        assert "\n" not in about
        assert "Source: " in rest
        assert name == "uniform-grid" or ("arXiv" in rest and "Differs here: " in rest)


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=pytest.mark.smoke if name == "one token" else ()) for name in LAYOUTS]
)
@pytest.mark.parametrize(("name", "more"), SETTINGS)
def test_the_slow_formula(name, more, layout):
    for seed in range(3):
        image = random_image(layout, seed)
        for ratio in (0.01, 0.1, 0.25, 0.4, 0.5, 0.7, 0.9, 1):
            pruner = METHODS[name](keep_ratio=ratio, **more)
            total = max(1, round(ratio * image.layout.num_tokens))
            check(pruner.checked_select(only(image, pruner.needs)), image, *SLOW[name](image, total, **more))


@given(
    name=st.sampled_from([name for name in RIVALS if name != "globalcom2"]),  # its lengths leave no exact ties
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 10**6),
    values=st.integers(1, 4),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=300)
def test_ties_go_by_index(name, layout, seed, values, share):
    image = tied_image(layout, seed, values)
    total = max(1, round(share * image.layout.num_tokens))
    pruner = METHODS[name](keep_tokens=total)
    check(pruner.checked_select(only(image, pruner.needs)), image, *SLOW[name](image, total))


@given(
    name=st.sampled_from(RIVALS),
    layout=st.sampled_from(list(LAYOUTS)),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["random", "ties", "constant", "zero", "half precision"]),
    share=st.floats(0, 1),
)
@settings(deadline=None, max_examples=300)
def test_exactly_k_tokens(name, layout, seed, kind, share):
    if kind == "ties":
        image = tied_image(layout, seed)
    elif kind in ("constant", "zero"):
        image = image_of(layout, lambda *shape: torch.full(shape, 0.3 if kind == "constant" else 0.0))
    else:
        image = random_image(layout, seed)
    if kind == "half precision":
        halves = {n: value.bfloat16() if isinstance(value, torch.Tensor) else value for n, value in vars(image).items()}
        image = ImageEvidence(**halves)
    number = image.layout.num_tokens
    total = max(1, round(share * number))
    pruner = METHODS[name](keep_tokens=total)
    for budget in {1, total, number}:
        pruner.keep_tokens = budget
        selection = pruner.checked_select(only(image, pruner.needs))
        assert len(selection.kept) == budget
        again = pruner.checked_select(only(image, pruner.needs))
        assert torch.equal(again.kept, selection.kept)
        assert (again.states is None) == (selection.states is None)
        if selection.states is not None:
            assert budget < number, "nothing is merged where everything stays"
            assert selection.states.dtype == image.embeddings.dtype
            assert torch.equal(again.states, selection.states)
        for scores in selection.scores.values():
            assert scores.dtype == torch.float32
            assert len(scores) == number


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["fastv", "fastervlm", "hired", "globalcom2", "sparsevlm"])
def test_constant_scores_keep_the_first_of_each_region(name, layout):
    image = image_of(layout, lambda *shape: torch.full(shape, 0.3))
    for total in range(1, image.layout.num_tokens + 1):
        kept = METHODS[name](keep_tokens=total).select(image).kept.tolist()
        whole = [list(range(image.layout.num_tokens))]
        for tokens in regions(image) if name in ("fastervlm", "hired", "globalcom2") else whole:
            mine = [i for i in kept if i in tokens]
            assert mine == tokens[: len(mine)]


@pytest.mark.parametrize("name", ["hired", "globalcom2"])
def test_constant_attention_treats_equal_tiles_alike(name):
    image = image_of("tiles, thumbnail last", lambda *shape: torch.full(shape, 0.3))
    for total in range(1, image.layout.num_tokens + 1):
        kept = METHODS[name](keep_tokens=total).select(image).kept.tolist()
        budgets = [len(set(tokens) & set(kept)) for tokens in regions(image)][:-1]
        assert max(budgets) - min(budgets) <= 1
        assert budgets == sorted(budgets, reverse=True), "what is left over goes by index"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in RIVALS if name != "uniform-grid"])
def test_overflow_is_refused(name, bad):
    pruner = METHODS[name]()
    for needed in pruner.needs:
        if (name, needed) == ("visionzip", "embeddings"):
            continue  # what is overflown there stays as it is
        image = only(random_image("windows"), pruner.needs)
        getattr(image, needed).view(-1)[3] = bad
        with pytest.raises(ValueError, match=f"{needed} holds NaN or infinite"):
            pruner.select(image)


@pytest.mark.parametrize(
    ("name", "setting", "values"),
    [
        ("vispruner", "important_ratio", (-0.1, 1.1, "half")),
        ("hired", "alpha", (-0.1, 1.1, None)),
        ("globalcom2", "temperature", (0, -1, float("inf"), "hot")),
        ("visionzip", "contextual_ratio", (-0.1, 1.1, None)),
        ("visionzip", "layer", (1, 2)),
        ("dart", "pivots", (0, 1.5)),
        ("scope", "alpha", (-1, float("inf"), "one")),
        ("tops", "stages", (0, 4, 1.5)),
        ("tops", "diversity", (-0.1, float("nan"))),
        ("tops", "deep_coverage", (-0.1, "much")),
        ("tops", "scale", ("sum", None)),
        ("fastv", "keep_ratio", (0, 2)),
        ("hired", "keep_ratio", (0, 2)),
    ],
)
def test_bad_settings(name, setting, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{setting} must be .*got"):
            METHODS[name](**{setting: value})


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_even_cells_are_even(rows, columns, share):
    number = round(share * rows * columns)
    cells = even_cells(rows, columns, number)
    assert len(cells) == len(set(cells)) == number
    assert cells == sorted(cells)
    assert all(0 <= cell < rows * columns for cell in cells)
    lines = {}
    for cell in cells:
        lines.setdefault(cell // columns, []).append(cell % columns)
    for where, length in [(sorted(lines), rows), *((line, columns) for line in lines.values())]:
        if not where:
            continue
        gaps = [b - a for a, b in zip(where, where[1:], strict=False)]
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert abs(where[0] - (length - 1 - where[-1])) <= 1, "as far from one border as from the other"
    counts = [len(line) for line in lines.values()]
    assert not counts or max(counts) - min(counts) <= 1


def test_even_cells_of_a_square():
    assert even_cells(4, 4, 4) == [5, 7, 13, 15]
    assert even_cells(4, 4, 16) == list(range(16))
    assert even_cells(2, 8, 4) == [9, 11, 13, 15]
    assert even_cells(4, 4, 1) == [10]
    assert even_cells(3, 3, 0) == []


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (1, 4), (3, 1)])
def test_thumbnail_is_seen_as_torch_interpolates(rows, columns):
    LAYOUTS["for torch"] = stacked(rows, columns, (4, 5), (3, 6))
    try:
        image = random_image("for torch")
    finally:
        del LAYOUTS["for torch"]
    *tiles, thumbnail = regions(image)
    small = image.encoder_attention[thumbnail].view(1, 1, 3, 6)
    large = F.interpolate(small, size=(4 * rows, 5 * columns), mode="bilinear", align_corners=False)[0, 0]
    seen = seen_from_thumbnail(image, image.encoder_attention)
    for number, tokens in enumerate(tiles):
        y, x = divmod(number, columns)
        expected = large[4 * y : 4 * y + 4, 5 * x : 5 * x + 5].flatten()
        torch.testing.assert_close(seen[tokens], expected)
    assert torch.equal(seen[thumbnail], image.encoder_attention[thumbnail])


def test_attention_shares_of_one_bright_spot():
    image = image_of("tiles, thumbnail last", lambda *shape: torch.zeros(shape))
    image.encoder_attention[6 * 9 + 4 + 1] = 1.0  # row 1, column 1 of 4 x 4: two thirds of it belong to the middle tile
    assert attention_shares(image, guiding(image, image.encoder_attention).tolist()) == pytest.approx(
        [1 / 3, 2 / 3, 0, 0, 0, 0, 0]
    )
    budgets = HiRED(keep_tokens=8).select(image).kept // 9
    assert budgets.bincount(minlength=7)[:6].tolist() == [1, 3, 0, 0, 0, 0]


def test_divprune_finds_the_first_token_in_blocks(monkeypatch):
    for seed in range(5):
        image = random_image("windows", seed)
        whole = DivPrune(keep_ratio=0.3).select(image).kept
        monkeypatch.setattr("ptprune.methods.divprune.ROWS_AT_A_TIME", 7)
        assert torch.equal(DivPrune(keep_ratio=0.3).select(image).kept, whole)
        monkeypatch.undo()


def test_sparsevlm_without_instruction():
    image = random_image("windows")
    empty = {"instruction_embeddings": torch.zeros(0, 7), "instruction_map": torch.zeros(0, image.layout.num_tokens)}
    selection = METHODS["sparsevlm"](keep_tokens=4).checked_select(ImageEvidence(**{**vars(image), **empty}))
    assert selection.kept.tolist() == [0, 1, 2, 3]


def test_sparsevlm_with_one_word():
    image = random_image("windows")
    one = {name: getattr(image, name)[:1] for name in ("instruction_embeddings", "instruction_map")}
    selection = METHODS["sparsevlm"](keep_tokens=4).select(ImageEvidence(**{**vars(image), **one}))
    assert selection.kept.tolist() == image.instruction_map[0].topk(4).indices.sort().values.tolist()


def test_visionzip_keeps_what_it_does_not_merge():
    image = random_image("windows")
    assert VisionZip(keep_ratio=1, contextual_ratio=1).select(image).states is None
    assert VisionZip(keep_ratio=0.5, contextual_ratio=0).select(image).states is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("more", [{}, {"scale": "mean"}, {"deep_diversity": 0.0, "coverage": 2.0}, {"stages": 1}])
def test_each_stage_of_tops(layout, more):
    for seed, ratio in itertools.product(range(2), (0.05, 0.3, 0.6, 1)):
        image = random_image(layout, seed)
        pruner = METHODS["tops"](keep_ratio=ratio, **more)
        number = image.layout.num_tokens
        kept = max(1, round(ratio * number))
        for stage in range(pruner.stages):
            after = round(number * (kept / number) ** ((stage + 1) / pruner.stages))
            weights = pruner.deep_diversity, pruner.deep_coverage
            relevance = [sum(column) / 5 for column in zip(*image.instruction_map.tolist(), strict=True)]
            if stage == 0:
                relevance, weights = image.encoder_attention.tolist(), (pruner.diversity, pruner.coverage)
            slow = tops_set(image.hidden_states.tolist(), relevance, after, *weights, pruner.scale)
            found = pruner.checked_select(replace(only(image, pruner.needs), stage=stage))
            assert found.kept.tolist() == slow
            [scores] = found.scores.values()
            torch.testing.assert_close(scores, torch.tensor(relevance))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflow_is_refused_in_each_stage_of_tops(bad):
    for stage, needed in ((0, "encoder_attention"), (1, "instruction_map"), (2, "hidden_states")):
        image = replace(only(random_image("windows"), METHODS["tops"]().needs), stage=stage)
        getattr(image, needed).view(-1)[3] = bad
        with pytest.raises(ValueError, match=f"{needed} holds NaN or infinite"):
            METHODS["tops"]().select(image)


def test_methods_that_compare_with_the_instruction_do_without_one():
    image = random_image("windows")
    empty = {"instruction_embeddings": torch.zeros(0, 7), "instruction_map": torch.zeros(0, image.layout.num_tokens)}
    image = replace(image, stage=1, **empty)
    for method in ("cdpruner", "tops"):
        kept = METHODS[method](keep_tokens=4, **({"stages": 2} if method == "tops" else {})).checked_select(image).kept
        assert len(kept) == 4


def test_depths_of_tops():
    tops = METHODS["tops"]
    assert tops().cut_layers(28) == (0, 12, 16)
    assert tops(stages=1).cut_layers(28) == (0,)
    assert tops(layer=1).cut_layers(4) == (1, 2, 3)
    with pytest.raises(ValueError, match="stages must be at most 2 where 2 layers follow, got 3"):
        tops(layer=3).cut_layers(5)
