"""Stage A: the vision tower and the projector alone.

The projector learns to speak the language model's language: what an LLM token of the picture is about is read off it by
its products with the (tied) word embeddings of " red", " 7", " star", ... The [CLS] learns what is in its tile: from
labels, and by contrast with captions and with the thumbnail.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptprune.tiny.documents import Document
from ptprune.tiny.scenes import Scene

from .data import (
    COLOUR_NAMES,
    IDENTITIES,
    KIND_NAMES,
    NONE,
    TOKENS,
    cut_tiles,
    normalise,
    print_labels,
    thumbnail_colours,
    tile_contents,
    token_labels,
    training_scene,
)
from .model import NOTHING, TEXT_WIDTH, VISION_WIDTH

GROUPS = ("identity", "colour", "kind", "centre", "beside", "below")


def make_batch(seed: int, tiles: int, empties: float = 0.35, most: int = 12) -> dict[str, np.ndarray]:
    """Tiles of several scenes, each scene with its thumbnail; most of the empty tiles are left out, they are easy."""
    rng = np.random.default_rng([seed, 3])
    pixels, labels, names, colours, thumbnail, scene_of = [], [], [], [], [], []
    count, number = 0, 0
    while count < tiles:
        scene = training_scene(seed * 64 + number, tiles=(3, most), fill=(0.4, 1.0))
        contents = tile_contents(scene)
        keep = [i for i, c in enumerate(contents) if c or rng.random() < empties][: tiles - count]
        named, coloured = bags(contents)
        pixels.append(cut_tiles(scene)[keep])
        labels.append(dense_labels(scene)[keep])
        names.append(named[keep])
        colours.append(coloured[keep])
        thumbnail.append(np.array([i == scene.tiles for i in keep]))
        scene_of.append(np.full(len(keep), number))
        count, number = count + len(keep), number + 1
    return {
        "pixels": np.concatenate(pixels),
        "labels": np.concatenate(labels),
        **tile_arrays(np.concatenate(names), np.concatenate(colours), np.concatenate(thumbnail)),
        "scene": np.concatenate(scene_of),
    }


def dense_labels(scene: Scene | Document) -> np.ndarray:
    """int64 [tiles (+ 1), groups, 16]: the labels of every token; a thumbnail shows colours, no detail."""
    marks = print_labels(scene) if isinstance(scene, Document) else token_labels(scene)
    dense = np.stack([getattr(marks, group) for group in GROUPS], axis=1)
    if scene.tiles == 1:
        return dense
    overview = np.full((1, len(GROUPS), TOKENS), NONE, np.int64)
    if isinstance(scene, Scene):
        overview[0, GROUPS.index("colour")] = thumbnail_colours(scene)
    return np.concatenate([dense, overview])


def bags(contents: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    """How often each name and each colour occurs in each tile: uint8 [tiles, identities] and [tiles, colours]."""
    names = np.zeros((len(contents), len(IDENTITIES)), np.uint8)
    colours = np.zeros((len(contents), len(COLOUR_NAMES)), np.uint8)
    for row, pairs in enumerate(contents):
        for identity, colour in pairs:
            names[row, identity] += 1
            if colour != NONE:
                colours[row, colour] += 1
    return names, colours


def tile_arrays(names: np.ndarray, colours: np.ndarray, thumbnail: np.ndarray) -> dict[str, np.ndarray]:
    """What the losses of the [CLS] need of a batch of tiles; equal numbers in "caption" mark equal contents."""
    told = np.concatenate([names, colours], axis=1)
    _, caption = np.unique(told, axis=0, return_inverse=True)
    return {
        "names": names,
        "colours": colours,
        "caption": caption.reshape(-1),
        "overview": np.flatnonzero(thumbnail),
        "plain": np.flatnonzero(~thumbnail),
    }


def tensors(batch: dict[str, np.ndarray], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The arrays of a batch on a device, copied without waiting for it."""
    if torch.device(device).type == "cpu":
        return {name: torch.tensor(array) for name, array in batch.items()}
    host = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in host.items()}


class VisionHeads(nn.Module):
    """What training needs beside the model. Thrown away afterwards."""

    def __init__(self, tokenizer: Any, scale: float = 3.0) -> None:
        super().__init__()

        def ids(words: list[str]) -> Tensor:
            return torch.tensor([tokenizer(" " + word)["input_ids"][0] for word in words])

        plurals = [f"{kind}s" for kind in KIND_NAMES]
        for group, words in {
            "identity": IDENTITIES,
            "colour": COLOUR_NAMES,
            "kind": list(KIND_NAMES),
            "centre": plurals,
            "beside": IDENTITIES,
            "below": IDENTITIES,
        }.items():
            self.register_buffer(f"{group}_words", ids([*words, NOTHING]), persistent=False)
        self.scale = nn.Parameter(torch.full((len(GROUPS),), scale))
        self.none = nn.Parameter(torch.zeros(len(GROUPS)))
        self.beside_map = nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False)
        self.below_map = nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False)
        self.contents = nn.Linear(VISION_WIDTH, len(IDENTITIES) + len(COLOUR_NAMES) + 1)
        nn.init.normal_(self.contents.weight, std=0.002)  # the [CLS] is long
        self.object_name = nn.Embedding(len(IDENTITIES), VISION_WIDTH)
        self.object_colour = nn.Embedding(len(COLOUR_NAMES), VISION_WIDTH)
        self.empty = nn.Parameter(torch.randn(VISION_WIDTH))
        self.temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.pair = nn.Parameter(torch.tensor([8.0, -4.0]))

    def token_logits(self, features: Tensor, embeddings: Tensor, group: str) -> Tensor:
        """features [tiles, 16, width] -> [tiles, 16, words + 1]; the last is "nothing"."""
        index = GROUPS.index(group)
        if group in ("beside", "below"):
            features = getattr(self, f"{group}_map")(features)
        words = embeddings[getattr(self, f"{group}_words")]
        logits = features @ words.T * self.scale[index]
        offset = torch.zeros(logits.shape[-1], device=logits.device)
        offset[-1] = 1.0
        return logits + offset * self.none[index]

    def captions(self, names: Tensor, colours: Tensor) -> Tensor:
        """Bags of names and of colours -> unit vectors [tiles, width]. Captions of several things add up."""
        told = names @ self.object_name.weight + colours @ self.object_colour.weight
        empty = (names.sum(1) == 0).float()[:, None]
        return F.normalize(told + empty * self.empty, dim=-1)


def vision_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Projected tokens [tiles, 16, text width] and raw [CLS] features [tiles, vision width]."""
    output = model.model.get_image_features(pixels, return_dict=True)
    return output.pooler_output, output.last_hidden_state[:, 0]


def vision_losses(
    heads: VisionHeads, embeddings: Tensor, tokens: Tensor, cls: Tensor, batch: dict[str, Tensor]
) -> dict[str, Tensor]:
    labels, names, colours = batch["labels"].long(), batch["names"].float(), batch["colours"].float()
    losses: dict[str, Tensor] = {}
    for index, group in enumerate(GROUPS):
        logits = heads.token_logits(tokens, embeddings, group)
        target = labels[:, index]
        last = logits.shape[-1] - 1
        target = torch.where(target == NONE, torch.full_like(target, last), target)
        each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        weight = torch.where(target.flatten() == last, 0.25, 1.0)
        losses[group] = (each * weight).sum() / weight.sum()

    holds = names.sum(1) > 0
    present = torch.cat([names > 0, colours > 0, ~holds[:, None]], dim=1).float()
    guess = heads.contents(cls)
    losses["contents"] = F.binary_cross_entropy_with_logits(guess, present, reduction="none").sum(1).mean() / 8

    # Tile against caption, both ways; equal captions are equally right.
    unit = F.normalize(cls, dim=-1)
    captions = heads.captions(names, colours)
    similarity = unit @ captions.T * heads.temperature.exp().clamp(max=60)
    same = (batch["caption"][:, None] == batch["caption"][None]).float()
    target = same / same.sum(1, keepdim=True)
    losses["caption"] = 0.25 * (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target))

    # Tile against thumbnail: alike iff the tile belongs to that scene and holds something.
    overview, plain = batch["overview"], batch["plain"]
    if len(overview):
        own = batch["scene"][overview][:, None] == batch["scene"][plain][None]
        belongs = own & holds[plain][None]
        logits = unit[overview] @ unit[plain].T * heads.pair[0] + heads.pair[1]
        weight = torch.where(own, 1.0, 0.1)
        each = F.binary_cross_entropy_with_logits(logits, belongs.float(), reduction="none")
        losses["thumbnail"] = 0.5 * (each * weight).sum() / weight.sum()
    return losses


@torch.no_grad()
def vision_accuracy(
    model: nn.Module, heads: VisionHeads, scenes: list, embeddings: Tensor | None = None
) -> dict[str, float]:
    """Share of right readings at the objects' centre tokens, and what the [CLS] similarity tells apart."""
    right = {group: [0, 0] for group in (*KIND_NAMES, "colour", "beside", "below", "centre", "background")}
    full, empty = [], []
    embeddings = model.get_input_embeddings().weight if embeddings is None else embeddings
    for scene in scenes:
        tokens, cls = vision_features(model, normalise(cut_tiles(scene)).to(embeddings.device))
        marks = print_labels(scene) if isinstance(scene, Document) else token_labels(scene)
        tiles = scene.tiles
        guess = {g: heads.token_logits(tokens[:tiles], embeddings, g).argmax(-1).cpu().numpy() for g in GROUPS}
        at = marks.centre != NONE
        for kind_index, kind in enumerate(KIND_NAMES):
            where = at & (marks.kind == kind_index)
            _count(right[kind], guess["identity"][where] == marks.identity[where])
        _count(right["colour"], guess["colour"][at] == marks.colour[at])
        for group in ("beside", "below"):
            pair = at & (getattr(marks, group) != NONE)
            _count(right[group], guess[group][pair] == getattr(marks, group)[pair])
        nothing = np.where(marks.centre == NONE, len(KIND_NAMES), marks.centre)
        _count(right["centre"], (guess["centre"] == nothing).all(axis=1))
        background = marks.identity == NONE
        _count(right["background"], guess["identity"][background] == len(IDENTITIES))
        if tiles > 1:
            close = F.cosine_similarity(cls[:tiles], cls[tiles:], dim=-1).tolist()
            for value, contents in zip(close, tile_contents(scene), strict=False):
                (full if contents else empty).append(value)
    result = {group: round(hit / max(1, total), 4) for group, (hit, total) in right.items()}
    if not full or not empty:
        return result
    result["cls_full"], result["cls_empty"] = round(float(np.mean(full)), 3), round(float(np.mean(empty)), 3)
    pairs = np.array(full)[:, None] > np.array(empty)[None]
    result["cls_auc"] = round(float(pairs.mean()), 4)
    return result


def _count(cell: list[int], hits: np.ndarray) -> None:
    cell[0] += int(hits.sum())
    cell[1] += hits.size
