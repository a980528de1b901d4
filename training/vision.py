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

from ptprune.tiny.world import KINDS

from .data import (
    COLOUR_NAMES,
    IDENTITIES,
    NONE,
    TOKENS,
    cut_tiles,
    normalise,
    thumbnail_colours,
    tile_contents,
    token_labels,
    training_scene,
)
from .model import NOTHING, TEXT_WIDTH, VISION_WIDTH

GROUPS = ("identity", "colour", "kind", "centre", "beside")


def make_batch(seed: int, tiles: int, empties: float = 0.35, most: int = 12) -> dict[str, np.ndarray]:
    """Tiles of several scenes, each scene with its thumbnail; most of the empty tiles are left out, they are easy."""
    rng = np.random.default_rng([seed, 3])
    pixels, labels, hot, thumbnail, scene_of = [], [], [], [], []
    count, number = 0, 0
    while count < tiles:
        scene = training_scene(seed * 64 + number, tiles=(3, most), fill=(0.4, 1.0))
        cut, contents, marks = cut_tiles(scene), tile_contents(scene), token_labels(scene)
        dense = np.stack([getattr(marks, group) for group in GROUPS], axis=1)  # [tiles, groups, 16]
        overview = np.full((1, len(GROUPS), TOKENS), NONE, np.int64)  # a thumbnail shows colours, no detail
        overview[0, GROUPS.index("colour")] = thumbnail_colours(scene)
        dense = np.concatenate([dense, overview])
        keep = [i for i, c in enumerate(contents) if c or rng.random() < empties][: tiles - count]
        bags = np.zeros((len(keep), len(IDENTITIES), len(COLOUR_NAMES)), np.float32)
        for row, i in enumerate(keep):
            for identity, colour in contents[i]:
                bags[row, identity, colour] += 1
        pixels.append(cut[keep])
        labels.append(dense[keep])
        hot.append(bags)
        thumbnail.append(np.array([i == scene.tiles for i in keep]))
        scene_of.append(np.full(len(keep), number))
        count, number = count + len(keep), number + 1
    return {
        "pixels": np.concatenate(pixels),
        "labels": np.concatenate(labels),
        "bags": np.concatenate(hot),
        "thumbnail": np.concatenate(thumbnail),
        "scene": np.concatenate(scene_of),
    }


class VisionHeads(nn.Module):
    """What training needs beside the model. Thrown away afterwards."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()

        def ids(words: list[str]) -> Tensor:
            return torch.tensor([tokenizer(" " + word)["input_ids"][0] for word in words])

        plurals = [f"{kind}s" for kind in KINDS]
        for group, words in {
            "identity": IDENTITIES,
            "colour": COLOUR_NAMES,
            "kind": list(KINDS),
            "centre": plurals,
            "beside": IDENTITIES,
        }.items():
            self.register_buffer(f"{group}_words", ids([*words, NOTHING]), persistent=False)
        self.scale = nn.Parameter(torch.full((len(GROUPS),), 3.0))
        self.none = nn.Parameter(torch.zeros(len(GROUPS)))
        self.beside_map = nn.Linear(TEXT_WIDTH, TEXT_WIDTH, bias=False)
        self.contents = nn.Linear(VISION_WIDTH, len(IDENTITIES) + len(COLOUR_NAMES) + 1)
        self.object_name = nn.Embedding(len(IDENTITIES), VISION_WIDTH)
        self.object_colour = nn.Embedding(len(COLOUR_NAMES), VISION_WIDTH)
        self.empty = nn.Parameter(torch.randn(VISION_WIDTH))
        self.temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.pair = nn.Parameter(torch.tensor([8.0, -4.0]))

    def token_logits(self, features: Tensor, embeddings: Tensor, group: str) -> Tensor:
        """features [tiles, 16, width] -> [tiles, 16, words + 1]; the last is "nothing"."""
        index = GROUPS.index(group)
        if group == "beside":
            features = self.beside_map(features)
        words = embeddings[getattr(self, f"{group}_words")]
        logits = features @ words.T * self.scale[index]
        offset = torch.zeros(logits.shape[-1], device=logits.device)
        offset[-1] = 1.0
        return logits + offset * self.none[index]

    def captions(self, bags: Tensor) -> Tensor:
        """bags [tiles, identities, colours] -> unit vectors [tiles, width]. Captions of several things add up."""
        names = bags.sum(2) @ self.object_name.weight + bags.sum(1) @ self.object_colour.weight
        empty = (bags.sum((1, 2)) == 0).float()[:, None]
        return F.normalize(names + empty * self.empty, dim=-1)


def vision_features(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Projected tokens [tiles, 16, text width] and raw [CLS] features [tiles, vision width]."""
    output = model.model.get_image_features(pixels, return_dict=True)
    return output.pooler_output, output.last_hidden_state[:, 0]


def vision_losses(
    heads: VisionHeads, embeddings: Tensor, tokens: Tensor, cls: Tensor, batch: dict
) -> dict[str, Tensor]:
    labels = torch.from_numpy(batch["labels"])
    bags = torch.from_numpy(batch["bags"])
    thumbnail = torch.from_numpy(batch["thumbnail"])
    scene = torch.from_numpy(batch["scene"])
    losses: dict[str, Tensor] = {}
    for index, group in enumerate(GROUPS):
        logits = heads.token_logits(tokens, embeddings, group)
        target = labels[:, index]
        last = logits.shape[-1] - 1
        target = torch.where(target == NONE, torch.full_like(target, last), target)
        each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        weight = torch.where(target.flatten() == last, 0.25, 1.0)
        losses[group] = (each * weight).sum() / weight.sum()

    present = torch.cat([(bags.sum(2) > 0), (bags.sum(1) > 0), (bags.sum((1, 2)) == 0)[:, None]], dim=1).float()
    guess = heads.contents(cls)
    losses["contents"] = F.binary_cross_entropy_with_logits(guess, present, reduction="none").sum(1).mean() / 8

    # Tile against caption, both ways; equal captions are equally right.
    unit = F.normalize(cls, dim=-1)
    captions = heads.captions(bags)
    similarity = unit @ captions.T * heads.temperature.exp().clamp(max=60)
    key = bags.flatten(1)
    same = (torch.cdist(key, key) < 1e-3).float()
    target = same / same.sum(1, keepdim=True)
    losses["caption"] = 0.25 * (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target))

    # Tile against thumbnail: alike iff the tile belongs to that scene and holds something.
    if thumbnail.any():
        overview = unit[thumbnail]
        tiles = unit[~thumbnail]
        holds = bags[~thumbnail].sum((1, 2)) > 0
        belongs = (scene[thumbnail][:, None] == scene[~thumbnail][None]) & holds[None]
        logits = overview @ tiles.T * heads.pair[0] + heads.pair[1]
        own = scene[thumbnail][:, None] == scene[~thumbnail][None]
        weight = torch.where(own, 1.0, 0.1)
        each = F.binary_cross_entropy_with_logits(logits, belongs.float(), reduction="none")
        losses["thumbnail"] = 0.5 * (each * weight).sum() / weight.sum()
    return losses


@torch.no_grad()
def vision_accuracy(
    model: nn.Module, heads: VisionHeads, scenes: list, embeddings: Tensor | None = None
) -> dict[str, float]:
    """Share of right readings at the objects' centre tokens, and what the [CLS] similarity tells apart."""
    right = {group: [0, 0] for group in ("digit", "letter", "shape", "colour", "beside", "centre", "background")}
    full, empty = [], []
    embeddings = model.get_input_embeddings().weight if embeddings is None else embeddings
    for scene in scenes:
        tokens, cls = vision_features(model, normalise(cut_tiles(scene)))
        marks = token_labels(scene)
        tiles = scene.tiles
        guess = {g: heads.token_logits(tokens[:tiles], embeddings, g).argmax(-1).numpy() for g in GROUPS}
        at = marks.centre != NONE
        for kind_index, kind in enumerate(KINDS):
            where = at & (marks.kind == kind_index)
            _count(right[kind], guess["identity"][where] == marks.identity[where])
        _count(right["colour"], guess["colour"][at] == marks.colour[at])
        pair = at & (marks.beside != NONE)
        _count(right["beside"], guess["beside"][pair] == marks.beside[pair])
        nothing = np.where(marks.centre == NONE, len(KINDS), marks.centre)
        _count(right["centre"], (guess["centre"] == nothing).all(axis=1))
        background = marks.identity == NONE
        _count(right["background"], guess["identity"][background] == len(IDENTITIES))
        if tiles > 1:
            close = F.cosine_similarity(cls[:tiles], cls[tiles:], dim=-1).tolist()
            for value, contents in zip(close, tile_contents(scene), strict=False):
                (full if contents else empty).append(value)
    result = {group: round(hit / max(1, total), 4) for group, (hit, total) in right.items()}
    result["cls_full"], result["cls_empty"] = round(float(np.mean(full)), 3), round(float(np.mean(empty)), 3)
    pairs = np.array(full)[:, None] > np.array(empty)[None]
    result["cls_auc"] = round(float(pairs.mean()), 4)
    return result


def _count(cell: list[int], hits: np.ndarray) -> None:
    cell[0] += int(hits.sum())
    cell[1] += hits.size
