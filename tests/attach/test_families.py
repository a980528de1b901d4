"""What is particular to families: tiles, windows, odd pictures, options of processors; see the matrix for exactness."""

from __future__ import annotations

import pytest
import torch

from ptprune.families import FAMILIES, family_of
from ptprune.methods.pyramid import PaperTokenPruning
from tests.attach.test_matrix import AXES as MATRIX
from tests.attach.test_matrix import WINDOW, parsed
from tests.exact import assert_exact, recording
from tests.oracle import blocked, language_model, region_numbers, slow_ptp
from tests.pairs import all_pairs, identity
from tests.versions import encodes_first, needs_transformers
from tests.zoo import ZOO, inputs_of, model_of
from tests.zoo.pictures import picture

ALL = [(name, prompt) for name, specimen in ZOO.items() for prompt in specimen.prompts]


def test_every_family_is_in_the_table():
    assert {family.model_class for family in FAMILIES.values()} == {type(model_of(name)).__name__ for name in ZOO}
    for name in ZOO:
        family = family_of(model_of(name))
        assert {"tiles", "region", "token"} <= set(family.stages)


SETTINGS = [{"keep_ratio": 0.5}, {"keep_ratio": 0.2, "alpha": 0.8, "temperature": 0.5}]
AXES = {
    "family": MATRIX["family"],
    "prompt": list(ZOO["internvl"].prompts),
    "layer": [0, 1, 3],
    "settings": [0, 1],
    "attention": ["sdpa", "eager"],
}


@pytest.mark.parametrize("case", all_pairs(AXES), ids=identity)
@torch.no_grad()
def test_kept_tokens_are_those_of_the_slow_method(case):
    (name, window), layer, settings = parsed(case["family"]), case["layer"], SETTINGS[case["settings"]]
    model, inputs = model_of(name, case["attention"], window), inputs_of(name, case["prompt"])
    pruner = PaperTokenPruning(layer=layer, window=WINDOW, **settings)
    with pruner(model):
        model(**inputs)
    kept = [image.kept.tolist() for image in pruner.report.images]
    assert kept == slow_ptp(ZOO[name], model, inputs, layer=layer, window=WINDOW, **settings)
    for image in pruner.report.images:
        assert len(image.kept) == max(1, round(settings["keep_ratio"] * image.num_tokens))


@pytest.mark.parametrize(("name", "prompt"), ALL)
@torch.no_grad()
def test_regions_are_those_of_the_processor(name, prompt):
    specimen, model, inputs = ZOO[name], model_of(name), inputs_of(name, prompt)
    pruner = PaperTokenPruning(window=WINDOW)
    with pruner(model):
        model(**inputs)
    images = pruner.report.images
    assert [image.sample for image in images] == [truth.sample for truth in inputs.layout]
    numbers = region_numbers(specimen, model, inputs, WINDOW)
    for image, truth, mine in zip(images, inputs.layout, numbers, strict=True):
        prunable = [number for number in mine if number >= 0]
        assert image.num_tokens == len(prunable)
        regions = {number: [k for k, other in enumerate(prunable) if other == number] for number in sorted({*prunable})}
        assert [region.indices for region in image.regions] == list(regions.values())
        for region in image.regions:
            assert (region.start, region.stop) == (region.indices[0], region.indices[-1] + 1)
            assert region.grid[0] * region.grid[1] == len(region.indices)
            assert region.budget == len(set(region.indices) & set(image.kept.tolist()))
        if specimen.native:
            continue
        assert [region.is_thumbnail for region in image.regions] == [n == truth.thumbnail for n in regions]
        tiles = [n - (truth.thumbnail == 0) for n in regions if n != truth.thumbnail]
        places = [(region.row, region.column) for region in image.regions if not region.is_thumbnail]
        assert places == [divmod(tile, truth.grid[1]) for tile in tiles]
    assert_boxes_lie_where_the_tokens_are(specimen, images, inputs)


def assert_boxes_lie_where_the_tokens_are(specimen, images, inputs):
    """Boxes tile the picture as the tokens of its tiles or windows do."""
    for image, truth in zip(images, inputs.layout, strict=True):
        tiles = [region for region in image.regions if not region.is_thumbnail]
        high = {region.row: region.grid[0] for region in tiles}
        wide = {region.column: region.grid[1] for region in tiles}
        rows, columns = sum(high.values()), sum(wide.values())
        assert not specimen.native or (rows, columns) == truth.grid
        for region in image.regions:
            if region.is_thumbnail:
                assert region.box == (0, 0, 1, 1)
                continue
            assert region.grid == (high[region.row], wide[region.column])
            top = sum(length for row, length in high.items() if row < region.row)
            left = sum(length for column, length in wide.items() if column < region.column)
            box = (left / columns, top / rows, (left + region.grid[1]) / columns, (top + region.grid[0]) / rows)
            assert region.box == pytest.approx(box)


compares_embeddings = needs_transformers("5.21", "SmolVLM finds placeholders by one coordinate of their embedding")


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].native])
def test_compact_positions_are_refused_where_positions_are_a_grid(name):
    with (
        pytest.raises(ValueError, match=f"not defined for {name}"),
        PaperTokenPruning(positions="compact")(model_of(name)),
    ):
        pass


@pytest.mark.parametrize("name", [name for name in ZOO if not ZOO[name].native])
@torch.no_grad()
def test_prompt_given_as_embeddings(name):
    model, inputs = model_of(name), dict(inputs_of(name, "several pictures"))
    pruner = PaperTokenPruning(keep_ratio=0.4)
    with pruner(model):
        expected = model(**inputs).logits
        grids = [image.grid for image in pruner.report.images]
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        given = model(inputs_embeds=embeds, **inputs).logits
        assert [image.grid for image in pruner.report.images] == grids
    assert torch.equal(given, expected)


@pytest.mark.parametrize("name", ["qwen2-vl", "glm4v"])
@torch.no_grad()
def test_windows_are_an_option(name):
    model, inputs = model_of(name), inputs_of(name, "one picture")
    counts = []
    for window in (2, 3, 100, None):
        pruner = PaperTokenPruning(window=window)
        with pruner(model):
            model(**inputs)
        (image,) = pruner.report.images
        (truth,) = inputs.layout
        for region in image.regions:
            assert window is None or max(region.grid) <= window
            assert (region.saliency is None) == (len(image.regions) == 1)
        for axis in (0, 1):
            lengths = {region.grid[axis] for region in image.regions}
            assert max(lengths) - min(lengths) <= 1, "windows are as equal as can be"
        assert image.grid == tuple(1 if window is None else -(-length // window) for length in truth.grid)
        assert sum(region.budget for region in image.regions) == len(image.kept) == round(image.num_tokens / 2)
        counts.append(len(image.regions))
    assert counts[0] > counts[1] > counts[2] == counts[3] == 1


OPTIONS = {
    "gemma3": {"do_pan_and_scan": False},
    "idefics3": {"do_image_splitting": False},
    "smolvlm": {"do_image_splitting": False},
    "internvl": {"crop_to_patches": False},
    "aya-vision": {"crop_to_patches": False},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_pictures_that_are_not_tiled(name):
    specimen, model = ZOO[name], model_of(name)
    inputs = specimen.inputs(specimen.prompts["several pictures"], **OPTIONS[name])
    pruner = recording(PaperTokenPruning)
    assert_exact(model, inputs, pruner, 5)
    assert [len(image.regions) for image in pruner.report.images] == [1, 1, 1]
    assert not any(image.regions[0].is_thumbnail for image in pruner.report.images)
    assert [image.kept.tolist() for image in pruner.report.images] == slow_ptp(
        specimen, model, inputs, layer=2, keep_ratio=0.5
    )


@torch.no_grad()
def test_onevision_tiles_several_pictures_where_the_processor_does():
    specimen, model = ZOO["llava-onevision"], model_of("llava-onevision")
    inputs = specimen.inputs(specimen.prompts["several pictures"], flat=True)
    pruner = PaperTokenPruning(keep_ratio=0.5)
    with pruner(model):
        model(**inputs)
    assert max(len(image.regions) for image in pruner.report.images) > 2
    kept = [image.kept.tolist() for image in pruner.report.images]
    assert kept == slow_ptp(specimen, model, inputs, layer=2, keep_ratio=0.5)


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].native])
@torch.no_grad()
def test_hand_written_loop_with_positions_of_a_grid(name):
    model, inputs = model_of(name), inputs_of(name, "batch")
    pruner = PaperTokenPruning(keep_ratio=0.4, window=WINDOW)
    mask, tokens = inputs["attention_mask"], []
    with pruner(model):
        expected = model.generate(**inputs, max_new_tokens=5)[:, -5:]
        output = model(**inputs, use_cache=True)
        for _ in range(5):
            output.logits[..., model.generation_config.suppress_tokens] = -torch.inf
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            positions = (mask.sum(1, keepdim=True) - 1 + model.model.rope_deltas).expand(3, -1, -1)
            cache = output.past_key_values
            output = model(tokens[-1], attention_mask=mask, position_ids=positions, past_key_values=cache)
    assert torch.equal(torch.cat(tokens, 1), expected)


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (300, 40), (3, 200)])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_pictures_of_odd_shapes(name, size):
    specimen, model = ZOO[name], model_of(name)
    inputs = specimen.inputs([("look at <image> what is it", [picture(*size)])])
    (image,) = assert_exact(model, inputs, recording(PaperTokenPruning, window=WINDOW), 4).images
    assert sorted(index for region in image.regions for index in region.indices) == list(range(image.num_tokens))
    assert min(image.grid) >= 1


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_half_precision(name):
    model, inputs = ZOO[name].build(torch.bfloat16), ZOO[name].inputs(ZOO[name].prompts["batch"], dtype=torch.bfloat16)
    pruner = PaperTokenPruning(keep_ratio=0.3, window=WINDOW)
    with pruner(model):
        logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert logits[pruner.report.kept_mask].isfinite().all()
    assert [len(image.kept) for image in pruner.report.images] == [
        max(1, round(0.3 * image.num_tokens)) for image in pruner.report.images
    ]


@pytest.mark.parametrize("name", ["llava-next", "gemma3", "idefics3", "qwen3-vl"])
@torch.no_grad()
def test_offloaded_device_map(name, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model, inputs = ZOO[name].build(), inputs_of(name, "batch")
    pruner = PaperTokenPruning(keep_ratio=0.4, window=WINDOW)
    with pruner(model):
        expected = model.generate(**inputs, max_new_tokens=5)
    decoder = language_model(model)
    layers = next(path for path, module in model.named_modules() if module is decoder) + ".layers."
    owners = {name.rpartition(".")[0] if name.count(".") > 1 else name for name in model.state_dict()}
    devices = {owner: "cpu" for owner in owners if not owner.startswith(layers)}
    devices |= {f"{layers}{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    model = accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    with pruner(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), expected)


@encodes_first
@torch.no_grad()
def test_onevision_aspect_ratio_of_the_call():
    """generate() hands it to the vision side, though a plain forward pass does not."""
    specimen, model = ZOO["llava-onevision"], model_of("llava-onevision")
    processor = specimen.make_processor()
    processor.vision_aspect_ratio = "anyres_max_9"
    inputs = processor(images=[picture(90, 60)], text=["<image> what is it"], return_tensors="pt")
    options = {"vision_aspect_ratio": "anyres_max_9", "max_new_tokens": 4}
    pruner = PaperTokenPruning(keep_ratio=0.5)
    with pruner(model):
        pruned = model.generate(**inputs, **options)
    (image,) = pruner.report.images
    assert image.num_tokens == 16 + 6 * 8, "the grid is not shrunk"
    with blocked(model, ~pruner.report.kept_mask, pruner.layer, inputs["attention_mask"]):
        assert torch.equal(model.generate(**inputs, **options, use_cache=False), pruned)


@torch.no_grad()
def test_a_picture_of_zeros():
    """Idefics3 has no answer to it."""
    specimen, model = ZOO["smolvlm"], model_of("smolvlm")
    inputs = specimen.inputs(specimen.prompts["one picture"], do_image_splitting=False)
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    stock = model(**inputs).logits
    pruner = PaperTokenPruning(keep_ratio=1)
    with pruner(model):
        assert torch.equal(model(**inputs).logits, stock)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=compares_embeddings) if name == "smolvlm" else name
        for name in ZOO
        if not ZOO[name].native
    ],
)
@torch.no_grad()
def test_embeddings_that_share_a_coordinate_with_the_placeholders(name):
    model, inputs = ZOO[name].build(), dict(inputs_of(name, "several pictures"))
    weight = model.get_input_embeddings().weight
    weight[:, 0] = weight[model.config.image_token_id, 0].clone()
    pruner = PaperTokenPruning(keep_ratio=0.4)
    with pruner(model):
        expected = model(**inputs).logits
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        assert torch.equal(model(inputs_embeds=embeds, **inputs).logits, expected)
