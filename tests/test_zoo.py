"""The zoo: stock models take what their processors make, and what the zoo says about both is true."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.zoo import ZOO, Inputs, Specimen
from tests.zoo.pictures import picture

CASES = [(name, prompt) for name, specimen in ZOO.items() for prompt in specimen.prompts]


@lru_cache
def model_of(name: str, attention: str = "sdpa") -> PreTrainedModel:
    return ZOO[name].build(attention=attention)


def vision(model: PreTrainedModel) -> nn.Module:
    return next(
        getattr(model.model, name) for name in ("vision_tower", "vision_model", "visual") if hasattr(model.model, name)
    )


@torch.no_grad()
def embedded(model: PreTrainedModel, specimen: Specimen, inputs: Inputs, patch: tuple[int, ...] | None) -> Tensor:
    """[LLM tokens of pictures, hidden] as the language model gets them, one ViT patch changed."""

    def change(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]):
        pixels = (args[0] if args else kwargs["pixel_values"]).clone()
        seen.append(pixels.shape[0])
        if patch is not None and specimen.native:
            pixels[patch] += 1
        elif patch is not None:
            row, index = patch
            across = pixels.shape[-1] // 8
            y, x = index // across * 8, index % across * 8
            pixels[row, :, y : y + 8, x : x + 8] += 1
        return ((pixels, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": pixels})

    def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        embeddings.append(kwargs["inputs_embeds"])

    seen: list[int] = []
    embeddings: list[Tensor] = []
    language = model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model
    hooks = [
        vision(model).register_forward_pre_hook(change, with_kwargs=True),
        language.register_forward_pre_hook(keep, with_kwargs=True),
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert seen == [specimen.shape(model, inputs)[0]], "the vision encoder took other rows than the layout says"
    return embeddings[0][specimen.visual(model, inputs)]


@pytest.mark.parametrize(("name", "prompt"), CASES)
@torch.no_grad()
def test_stock_takes_it(name: str, prompt: str) -> None:
    specimen, model = ZOO[name], model_of(name)
    rows = specimen.prompts[prompt]
    inputs = specimen.inputs(rows)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    assert real[:, -1].all(), "padded on the left"
    assert not (ids == specimen.processor.tokenizer.unk_token_id).any()

    logits = model(**inputs).logits[real]
    assert logits.isfinite().all()
    torch.testing.assert_close(model_of(name, "eager")(**inputs).logits[real], logits, rtol=0, atol=1e-4)
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape == (len(rows), ids.shape[1] + 4)

    pooled = specimen.pool(model, inputs, torch.rand(specimen.shape(model, inputs)))
    lengths = Counter()
    for image, tokens in zip(inputs.layout, pooled, strict=True):
        lengths[image.sample] += len(tokens)
    assert specimen.visual(model, inputs).sum(1).tolist() == [lengths[row] for row in range(len(rows))]
    for image in inputs.layout:
        cells = image.grid[0] * image.grid[1]
        assert specimen.native or image.tiles == cells + (image.thumbnail is not None)


@pytest.mark.parametrize("prompt", ["one picture", "batch of several pictures"])
@pytest.mark.parametrize("name", ZOO)
def test_pool_is_what_the_model_does(name: str, prompt: str) -> None:
    """Without attention between patches, one changed patch changes exactly the tokens that ``pool`` says."""
    specimen = ZOO[name]
    model = specimen.build()
    with torch.no_grad():
        for module in vision(model).modules():
            for projection in ("out_proj", "projection_layer", "proj"):
                if type(module).__name__.endswith("Attention") and hasattr(module, projection):
                    for parameter in getattr(module, projection).parameters():
                        parameter.zero_()
    inputs = specimen.inputs(specimen.prompts[prompt])
    before = embedded(model, specimen, inputs, None)
    shape = specimen.shape(model, inputs)
    total = torch.Size(shape).numel()
    for flat in torch.randperm(total, generator=torch.Generator().manual_seed(0))[:12].tolist():
        patch = tuple(int(index) for index in torch.unravel_index(torch.tensor(flat), shape))
        weights = torch.zeros(shape)
        weights[patch] = 1
        expected = torch.cat(specimen.pool(model, inputs, weights)).nan_to_num() != 0
        changed = (embedded(model, specimen, inputs, patch) != before).any(-1)
        torch.testing.assert_close(changed, expected)


@pytest.mark.parametrize("name", ZOO)
def test_pictures_differ(name: str) -> None:
    """Tile counts differ within a batch, tokens are structural where they should be, right padding works."""
    specimen, model = ZOO[name], model_of(name)
    inputs = specimen.inputs(specimen.prompts["batch"], side="right")
    assert not inputs["attention_mask"][:, -1].all()
    first, second = specimen.pool(model, inputs, torch.rand(specimen.shape(model, inputs)))
    assert len(first) != len(second)
    assert bool(first.isnan().any()) == name.startswith("llava")


def test_onevision_shrinks() -> None:
    specimen, model = ZOO["llava-onevision"], model_of("llava-onevision")
    for size, tokens in {(60, 30): 16 + 4 * 9, (90, 60): 16 + 4 * 7}.items():  # 4 rows of 8, and 6 of 8 made 4 of 6
        inputs = specimen.inputs([("<image>", [picture(*size)])])
        (pooled,) = specimen.pool(model, inputs, torch.rand(specimen.shape(model, inputs)))
        assert len(pooled) == tokens


@torch.no_grad()
def test_onevision_cuts_several_pictures_only_of_a_flat_list() -> None:
    specimen, model = ZOO["llava-onevision"], model_of("llava-onevision")
    rows = specimen.prompts["batch of several pictures"]
    for flat, tiles in {False: [1, 1, 4], True: [5, 5, 4]}.items():
        inputs = specimen.inputs(rows, flat=flat)
        assert [image.tiles for image in inputs.layout] == tiles
        assert model(**inputs).logits.isfinite().all()
        pooled = specimen.pool(model, inputs, torch.rand(specimen.shape(model, inputs)))
        assert sum(map(len, pooled)) == specimen.visual(model, inputs).sum()


@torch.no_grad()
def test_qwen2_5_has_windows() -> None:
    """Its first layer gets the patches in another order than the processor lists them."""
    specimen, tower = ZOO["qwen2.5-vl"], vision(model_of("qwen2.5-vl"))
    seen: list[Tensor] = []
    hooks = [
        tower.patch_embed.register_forward_hook(lambda module, args, output: seen.append(output)),
        tower.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0])),
    ]
    model_of("qwen2.5-vl")(**specimen.inputs(specimen.prompts["one picture"]))
    for hook in hooks:
        hook.remove()
    listed, permuted = seen
    assert not torch.equal(listed, permuted)
    torch.testing.assert_close(permuted.sum(0), listed.sum(0))


@torch.no_grad()
def test_pictures_stay_whole_on_request() -> None:
    rows = ZOO["idefics3"].prompts["batch"]
    for name, option in {
        "idefics3": {"do_image_splitting": False},
        "smolvlm": {"do_image_splitting": False},
        "gemma3": {"do_pan_and_scan": False},
        "internvl": {"crop_to_patches": False},
    }.items():
        inputs = ZOO[name].inputs(rows, **option)
        assert [image.tiles for image in inputs.layout] == [1, 1], name
        assert model_of(name)(**inputs).logits.isfinite().all()
