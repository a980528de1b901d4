"""Questions about the synthetic worlds that the shipped checkpoint was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ptprune.bench.items import Item
from ptprune.errors import UserError
from ptprune.tiny.backgrounds import BACKGROUNDS
from ptprune.tiny.world import MissingExtra
from ptprune.tiny.worlds import WORLDS, World

USUAL = "usual"
"""The world where nobody names one."""


def world_named(name: str, background: str | None = None) -> World:
    """A world by its name.

    Raises UserError for one that there is not, and for a background that it cannot have.
    """
    if name not in WORLDS:
        raise UserError(f"--scenes {name}: unknown; give one of {', '.join(WORLDS)}")
    world = WORLDS[name]
    if background is not None and not world.backgrounds:
        raise UserError(f"--background {background}: {name} has its own; leave it out")
    if background is not None and background not in BACKGROUNDS:
        raise UserError(f"--background {background}: unknown; give one of {', '.join(BACKGROUNDS)}")
    return world


def scene_items(
    split: str,
    count: int,
    on_item: Callable[[int], None] = lambda done: None,
    world: str = USUAL,
    background: str | None = None,
) -> list[Item]:
    """One question about each of the first pictures of a split; both follow from the picture's number alone.

    Raises UserError where the libraries that draw scenes are not installed, and as ``world_named``.
    """
    drawn = world_named(world, background)
    items = []
    for seed in range(count):
        try:
            one = drawn.example(split, seed, background)
        except MissingExtra as error:
            raise UserError(str(error)) from None
        digest = hashlib.sha256(one.image.tobytes()).hexdigest()
        items.append(
            Item(one.image, one.image.size, digest, one.question, one.answer, one.kind, one.before, drawn.listing)
        )
        on_item(len(items))
    return items
