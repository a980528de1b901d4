"""Questions about the synthetic scenes that the shipped checkpoint was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ptprune.bench.items import Item
from ptprune.errors import UserError


def scene_items(split: str, count: int, on_item: Callable[[int], None] = lambda done: None) -> list[Item]:
    """One question about each of the first scenes of a split; both follow from the scene's number alone.

    Raises UserError where the libraries that draw scenes are not installed.
    """
    try:
        from ptprune.tiny.questions import ask
        from ptprune.tiny.scenes import generate_scene
        from ptprune.tiny.world import MissingExtra
    except ImportError as error:
        raise UserError(f"{error}; install the extra: pip install 'ptprune[scenes]'") from None
    items = []
    for seed in range(count):
        try:
            scene = generate_scene(split, seed)
        except MissingExtra as error:
            raise UserError(str(error)) from None
        digest = hashlib.sha256(scene.image.tobytes()).hexdigest()
        items += [Item(scene.image, scene.image.size, digest, q.text, q.answer, q.kind) for q in ask(scene, 1)]
        on_item(len(items))
    return items
