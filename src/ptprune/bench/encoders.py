"""What of a picture is encoded, as arms of a speed benchmark: the steps of the package, and what they have to beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ptprune.bench.arms import PRUNED, Arm
from ptprune.bench.encodings import BOTH, FEWER, PATCHES, SALIENT, middle, settings_of
from ptprune.bench.subject import Setup, Subject, in_fewer_tiles
from ptprune.errors import BrokenPass, SettingError
from ptprune.families import family_of
from ptprune.pruner import TokenPruner
from ptprune.report import ImageReport


def pruned_arms(
    pruners: Mapping[str, TokenPruner], ratios: Sequence[float], encoders: Sequence[str], setup: Setup
) -> list[Arm]:
    """The pruned arms of a run: each method at each ratio, with each encoder. ``FEWER`` is completed by ``as_fewer``.

    Args:
        pruners: method -> pruner, whose settings hold where an encoder does not say otherwise.
        encoders: names of ``ENCODERS``; none: as the pruners say.

    Raises:
        SettingError: for ``FEWER`` without ``SALIENT``, and for a layer that the tower has not.
    """
    if FEWER in encoders and SALIENT not in encoders:
        raise SettingError(f"encoder {FEWER}: has as many tiles as {SALIENT}; give both")
    arms = []
    for method, plain in pruners.items():
        for ratio in ratios:
            pruner = replace(plain, keep_ratio=ratio)
            for encoder in encoders or (None,):
                told = pruner if encoder is None else replace(pruner, **_settings(encoder, pruner, setup))
                arm = Arm(PRUNED, method, told, encoder=encoder, ratio=ratio if len(ratios) > 1 else None)
                arms.append(arm)
    deepest, layers = max((arm.pruner.vision_layer or 0 for arm in arms if arm.pruner), default=0), setup.tower_layers
    if layers is not None and deepest >= layers:
        raise SettingError(f"set vision_layer={deepest}: too deep, {layers} vision layers run; give 1 to {layers - 1}")
    return arms


def _settings(encoder: str, pruner: TokenPruner, setup: Setup) -> dict[str, Any]:
    """The settings that make an arm of a pruner."""
    layer = pruner.vision_layer
    if encoder in (PATCHES, BOTH) and layer is None:
        if setup.tower_layers is None:
            raise SettingError(f"encoder {encoder}: the depth of the tower is not known; --set vision_layer")
        layer = middle(setup.tower_layers)
    return settings_of(encoder, layer, "salient" if pruner.tiles == "all" else pruner.tiles)


def as_fewer(arm: Arm, salient: ImageReport, setup: Setup, subject: Subject) -> Arm:
    """The ``FEWER`` arm with its prompt: as many tiles and tokens as the salient one of its method and ratio."""
    assert arm.pruner is not None
    tiles = salient.encoded_tiles - any(region.is_thumbnail for region in salient.regions)
    least = 2 if setup.shape is not None and setup.shape.family == "llava_next" else 1
    pruner = replace(arm.pruner, keep_tokens=arm.pruner.num_kept(salient.num_tokens))
    return replace(arm, pruner=pruner, inputs=in_fewer_tiles(setup, subject, max(least, tiles)))


@contextmanager
def counted_tiles(model: Any) -> Iterator[list[int]]:
    """Collects how many tiles go into each call of the vision tower's first layer; stays empty without such a tower."""
    rows: list[int] = []
    encoder = family_of(model).encoder(model)

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    hooks = [] if encoder is None else [encoder.layers[0].register_forward_pre_hook(count, with_kwargs=True)]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def check_encoded(arm: Arm, images: Sequence[ImageReport], rows: Sequence[int]) -> int | None:
    """How many tiles of a prompt the tower encoded in an arm: those that the report names, which the settings ask for.

    Equal tiles of a picture may be encoded once.

    Args:
        images: of the whole batch, a prompt each.
        rows: tiles that the tower was given, see ``counted_tiles``.

    Raises:
        BrokenPass: where the report, the settings and the tower do not agree.
    """
    assert arm.pruner is not None
    if not rows:
        return None
    told = sum(image.encoded_tiles for image in images)
    wanted = sum(_wanted(arm.pruner.tiles, image) for image in images)
    at_least = "at least " if arm.pruner.tiles == "salient" else ""
    as_asked = told >= wanted if at_least else told == wanted
    as_told = sum(rows) == told if arm.pruner.tiles == "all" else sum(rows) <= told
    if not (as_asked and as_told):
        raise BrokenPass(
            f"{arm.label}: {at_least}{wanted} tiles should be encoded, the report tells of {told}, and the vision "
            f"tower was given {sum(rows)}"
        )
    return round(sum(rows) / len(images))


def _wanted(tiles: str | int, image: ImageReport) -> int:
    """Tiles of an image that have to be encoded, thumbnail included; for "salient" ones, at least so many."""
    thumbnails = sum(region.is_thumbnail for region in image.regions)
    if tiles == "all" or not thumbnails:
        return len(image.regions)
    others = len(image.regions) - thumbnails
    return thumbnails + (0 if tiles == "salient" else min(int(tiles), others))
