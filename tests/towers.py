"""What the vision tower is given, and which tokens of the prompt come of it: by the stock model's own packing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tests.zoo.specimen import Inputs, Specimen


def tower_of(model: nn.Module) -> nn.Module:
    return model.model.vision_model if hasattr(model.model, "vision_model") else model.model.vision_tower


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the pixels of every call of the tower's patch embedding: a list of [tiles, 3, height, width]."""
    seen: list[Tensor] = []
    [convolution] = [module for module in tower_of(model).modules() if isinstance(module, nn.Conv2d)]
    handle = convolution.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def tiles_of(specimen: Specimen, inputs: Inputs) -> Tensor:
    """[encoder rows, 3, height, width], what the stock model encodes."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 4:
        return pixels
    if specimen.name.startswith("llava"):
        return torch.cat([mine[: image.tiles] for mine, image in zip(pixels, inputs.layout, strict=True)])
    return pixels.flatten(0, 1)[pixels.flatten(0, 1).flatten(1).any(1)]


def tokens_of(specimen: Specimen, model: nn.Module, inputs: Inputs, rows: Tensor) -> Tensor:
    """BoolTensor [batch, prompt]: the visual tokens, structural ones excepted, that are made of encoder rows other than
    ``rows``, a BoolTensor [encoder rows], wholly or in part."""
    return tokens_of_patches(specimen, model, inputs, rows[:, None].expand(specimen.shape(model, inputs)))


def tokens_of_patches(specimen: Specimen, model: nn.Module, inputs: Inputs, patches: Tensor) -> Tensor:
    """The same, for a BoolTensor [encoder rows, patches]."""
    values = patches.float().contiguous()
    found = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    found[specimen.visual(model, inputs)] = torch.cat(specimen.pool(model, inputs, values)) < 1 - 1e-6
    return found


def missing_of(specimen: Specimen, model: nn.Module, inputs: Inputs, seen: list[Tensor]) -> Tensor:
    """The visual tokens that cannot have come of what the tower has ``seen``."""
    tiles, given = tiles_of(specimen, inputs), torch.cat(seen)
    rows = torch.stack([(given == tile).flatten(1).all(1).any() for tile in tiles])
    return tokens_of(specimen, model, inputs, rows)


def missing(specimen: Specimen, model: nn.Module, inputs: Inputs, pruner: object) -> Tensor:
    """``missing_of`` a prefill with a pruner."""
    with watched(model) as seen, pruner(model):  # type: ignore[operator]
        model(**inputs)
    return missing_of(specimen, model, inputs, seen)
