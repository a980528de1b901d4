"""Scenes as tensors: pixels exactly as the processor makes them, and labels for every LLM token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ptprune.tiny.documents import Document
from ptprune.tiny.scenes import Scene, generate_scene
from ptprune.tiny.world import COLOURS, KEYS, KINDS, NAMES, TILE, VALUES

from .model import PRINTED, TOKENS

SIDE = int(TOKENS**0.5)
BLOCK = TILE // SIDE
IDENTITIES = [*(name for kind in KINDS for name in NAMES[kind]), *KEYS, *VALUES]
KIND_NAMES = (*KINDS, *PRINTED)
COLOUR_NAMES = list(COLOURS)
NONE = -1
ENOUGH = 14
"""Pixels of its 16x16 that an object must cover for an LLM token to be about it."""

PRINT_MARGIN = 5
"""Pixels of a word that reach into an LLM token without the token being about it."""

_MEAN = np.array(OPENAI_CLIP_MEAN, np.float32)
_STD = np.array(OPENAI_CLIP_STD, np.float32)
_SCALED = (np.arange(256) * (1 / 255)).astype(np.float32)


def cut_tiles(scene: Scene | Document) -> np.ndarray:
    """uint8 [tiles (+ 1), 64, 64, 3]: the tiles row by row, then the thumbnail if there is more than one tile."""
    pixels = np.asarray(scene.image)
    rows = pixels.reshape(scene.rows, TILE, scene.columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    if scene.tiles == 1:
        return rows
    thumbnail = np.asarray(scene.image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return np.concatenate([rows, thumbnail[None]])


def normalise(tiles: np.ndarray) -> torch.Tensor:
    """What the image processor does after cutting. float32 [tiles, 3, 64, 64]."""
    scaled = _SCALED[tiles]
    return torch.from_numpy(((scaled - _MEAN) / _STD).transpose(0, 3, 1, 2).copy())


def scaled_pixels(tiles: torch.Tensor) -> torch.Tensor:
    """As ``normalise``, on the device where the uint8 tiles are; equal to it but for rounding."""
    mean, std = (torch.tensor(values, device=tiles.device) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((tiles.float() * (1 / 255) - mean) / std).permute(0, 3, 1, 2).contiguous()


@dataclass
class TokenLabels:
    """Per tile and LLM token ([tiles, 16]), -1 for none. The thumbnail, if any, is the last tile."""

    identity: np.ndarray
    colour: np.ndarray
    kind: np.ndarray
    centre: np.ndarray  # the kind, at the one token where the object's middle lies
    beside: np.ndarray  # identity of the object's neighbour in its tile
    below: np.ndarray  # identity of the word below in its table


def token_labels(scene: Scene) -> TokenLabels:
    counts = np.zeros((len(scene.objects) + 1, scene.rows * SIDE, scene.columns * SIDE), np.int32)
    blocks = scene.owner.reshape(scene.rows * SIDE, BLOCK, scene.columns * SIDE, BLOCK)
    for index in range(len(scene.objects)):
        counts[index] = (blocks == index).sum(axis=(1, 3))
    counts[-1] = ENOUGH - 1  # background wins unless an object covers enough
    owner = counts.argmax(axis=0)
    owner[owner == len(scene.objects)] = NONE
    centre = np.full_like(owner, NONE)
    for index, o in enumerate(scene.objects):
        x, y = (int(v // BLOCK) for v in o.centre)
        owner[y, x] = centre[y, x] = index

    def look_up(values: list[int], where: np.ndarray) -> np.ndarray:
        table = np.array([*values, NONE], np.int64)  # index -1 finds the last
        return _tile_major(table[where], scene)

    identity = [IDENTITIES.index(o.name) for o in scene.objects]
    beside = [NONE if o.beside is None else identity[o.beside] for o in scene.objects]
    kind = [KINDS.index(o.kind) for o in scene.objects]
    return TokenLabels(
        identity=look_up(identity, owner),
        colour=look_up([COLOUR_NAMES.index(o.colour) for o in scene.objects], owner),
        kind=look_up(kind, owner),
        centre=look_up(kind, centre),
        beside=look_up(beside, owner),
        below=np.full((scene.tiles, TOKENS), NONE, np.int64),
    )


def print_labels(document: Document) -> TokenLabels:
    """A word's tokens say what it is, what stands beside it and, for a key, which key stands below it."""
    shape = document.rows * SIDE, document.columns * SIDE
    grids = {name: np.full(shape, NONE, np.int64) for name in ("identity", "kind", "centre", "beside", "below")}
    lines = {(e.column, e.row, e.line): e for e in document.entries}
    for e in document.entries:
        y = e.row * SIDE + e.line
        following = lines.get((e.column, e.row, e.line + 1))
        for kind, text, other, box in (
            (KIND_NAMES.index("key"), e.key, e.value, e.key_box),
            (KIND_NAMES.index("value"), e.value, e.key, e.value_box),
        ):
            first = max(e.column * SIDE, (box[0] + PRINT_MARGIN) // BLOCK)
            last = min((e.column + 1) * SIDE - 1, (box[2] - PRINT_MARGIN) // BLOCK)
            grids["identity"][y, first : last + 1] = IDENTITIES.index(text)
            grids["kind"][y, first : last + 1] = kind
            grids["beside"][y, first : last + 1] = IDENTITIES.index(other)
            grids["centre"][y, (box[0] + box[2]) // 2 // BLOCK] = kind
            if text == e.key and following is not None:
                grids["below"][y, first : last + 1] = IDENTITIES.index(following.key)
    labels = {name: _tile_major(grid, document) for name, grid in grids.items()}
    return TokenLabels(colour=np.full_like(labels["kind"], NONE), **labels)


def _tile_major(grid: np.ndarray, scene: Scene | Document) -> np.ndarray:
    """[rows*4, columns*4] -> [tiles, 16], in the order of the LLM's tokens."""
    return grid.reshape(scene.rows, SIDE, scene.columns, SIDE).swapaxes(1, 2).reshape(-1, TOKENS)


def thumbnail_colours(scene: Scene) -> np.ndarray:
    """int64 [16]: the colour that covers most of each of the thumbnail's tokens, -1 where nothing does."""
    height, width = scene.owner.shape
    y, x = np.arange(height) * SIDE // height, np.arange(width) * SIDE // width
    cell = y[:, None] * SIDE + x[None, :]
    covered = np.zeros((len(COLOUR_NAMES) + 1, TOKENS))
    for index, o in enumerate(scene.objects):
        np.add.at(covered[COLOUR_NAMES.index(o.colour)], cell[scene.owner == index], 1)
    covered[-1] = 0.04 * height * width / TOKENS
    best = covered.argmax(axis=0)
    best[best == len(COLOUR_NAMES)] = NONE
    return best.astype(np.int64)


def tile_contents(scene: Scene | Document) -> list[list[tuple[int, int]]]:
    """Per tile the (identity, colour) of what it holds; the thumbnail, if any, holds everything. Print: no colour."""
    contents: list[list[tuple[int, int]]] = [[] for _ in range(scene.tiles)]
    if isinstance(scene, Document):
        for e in scene.entries:
            pair = ((IDENTITIES.index(text), NONE) for text in (e.key, e.value))
            contents[e.row * scene.columns + e.column].extend(pair)
    else:
        for o in scene.objects:
            contents[o.row * scene.columns + o.column].append((IDENTITIES.index(o.name), COLOUR_NAMES.index(o.colour)))
    if scene.tiles > 1:
        contents.append([pair for tile in contents for pair in tile])
    return contents


def prefetch(make: Any, start: int, ahead: int = 6) -> Iterator[Any]:
    """make(start), make(start + 1), ... computed in a process of their own, a few steps ahead."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    slots = context.Semaphore(ahead)
    worker = context.Process(target=_produce, args=(make, start, sender, slots), daemon=True)
    worker.start()
    sender.close()  # so that a worker's death ends the wait for it
    try:
        while True:
            item = receiver.recv()
            slots.release()
            yield item
    finally:
        worker.terminate()


def _produce(make: Any, step: int, sender: Connection, slots: Any) -> None:
    torch.set_num_threads(1)
    while True:
        slots.acquire()
        sender.send(make(step))
        step += 1


def training_scene(seed: int, tiles: tuple[int, int] = (6, 12), **options: Any) -> Scene:
    return generate_scene("train", seed, tiles=tiles, **options)
