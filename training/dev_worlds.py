"""Accuracy on the development split of every world, measured at the end of the stage "worlds"."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptprune.bench.items import listing_f1
from ptprune.tiny.documents import Document, generate_document
from ptprune.tiny.questions import Question, caption
from ptprune.tiny.scenes import Scene, generate_scene

from .data import cut_tiles, scaled_pixels
from .language import IGNORE, KINDS_ASKED, Packer, conversations
from .model import LIST
from .vision import vision_features

FILLS = {"usual": (0.3, 0.7), "crowded": (0.9, 1.0), "sparse": (0.1, 0.25)}
LONGEST = 72


def dev_pictures(count: int) -> dict[str, list]:
    """Pictures of each world, none of them in the package's own development questions."""
    pictures: dict[str, list] = {
        world: [
            generate_scene("dev", 1000 + i, fill=fill, tiles=(9, 12) if world == "crowded" else (6, 12))
            for i in range(count)
        ]
        for world, fill in FILLS.items()
    }
    pictures["documents"] = [generate_document("dev", 1000 + i) for i in range(count)]
    return pictures


@torch.no_grad()
def dev_accuracy(model: nn.Module, packer: Packer, world: str, pictures: list) -> dict[str, Any]:
    """Share of right answers by kind, and for scenes the F1 of "list everything"."""
    from .stage_worlds import hidden_states

    device = next(model.parameters()).device
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    scores: list[float] = []
    by_size: dict[int, list] = defaultdict(list)
    for picture in pictures:
        by_size[picture.tiles].append(picture)
    for size in sorted(by_size):
        group = by_size[size]
        for start in range(0, len(group), 32):
            some = group[start : start + 32]
            tokens = vision_features(model, _pixels(some, device))[0]
            pack = packer.pack(some, [conversations(p, p.seed, 8, False, False) for p in some])
            arrays = {name: torch.from_numpy(getattr(pack, name)).to(device) for name in ("ids", "position", "block")}
            said = model.lm_head(hidden_states(model, arrays, tokens)).argmax(-1).cpu().numpy()
            met = said == pack.target
            for index, kind in enumerate(KINDS_ASKED):
                where = (pack.kind == index) & (pack.target != IGNORE)
                asked[kind] += int(where.sum())
                right[kind] += int(met[where].sum())
            if isinstance(some[0], Scene):
                scores += [
                    listing_f1(a, caption(p)) for a, p in zip(_listings(model, packer, some, tokens), some, strict=True)
                ]
    result: dict[str, Any] = {k: round(right[k] / n, 4) for k, n in asked.items() if n}
    result["all"] = round(sum(right.values()) / sum(asked.values()), 4)
    if scores:
        result["caption f1"] = round(float(np.mean(scores)), 4)
    return result


def _pixels(pictures: list[Scene] | list[Document], device: torch.device) -> Tensor:
    return scaled_pixels(torch.from_numpy(np.concatenate([cut_tiles(p) for p in pictures])).to(device))


def _listings(model: nn.Module, packer: Packer, scenes: list[Scene], tokens: Tensor) -> list[str]:
    """Greedy answers to "list everything", without a cache: a hundred short passes."""
    from .stage_worlds import hidden_states

    empty = packer.pack(scenes, [[[Question("caption", LIST, "")]] for _ in scenes])
    ids = torch.from_numpy(empty.ids[:, :-1]).to(tokens.device)  # without the end of the empty answer
    done = torch.zeros(len(scenes), dtype=torch.bool, device=ids.device)
    start, first = ids.shape[1], empty.block[:, :-1]
    for _ in range(LONGEST):
        length = ids.shape[1]
        position = torch.arange(length, device=ids.device).expand(len(scenes), -1)
        block = torch.ones_like(ids)
        block[:, : first.shape[1]] = torch.from_numpy(first).to(ids.device)
        arrays = {"ids": ids, "position": position, "block": block}
        new = model.lm_head(hidden_states(model, arrays, tokens)[:, -1]).argmax(-1)
        new = torch.where(done, packer.end, new)
        ids = torch.cat([ids, new[:, None]], dim=1)
        done |= new == packer.end
        if bool(done.all()):
            break
    return packer.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
