"""Whether counts survive pruning, and whether pruning leaves what they need: ``python -m training.counts CHECKPOINT``.

All counting questions about crowded and usual scenes of the development split, unpruned and pruned, with the share of
the middles of the counted objects and of all their tokens that stay; before it, accuracy in every world.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ptprune.asking.chat import make_prompt
from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.methods import make_pruner
from ptprune.pruner import TokenPruner
from ptprune.tiny import CHECKPOINT
from ptprune.tiny.questions import all_questions
from ptprune.tiny.scenes import Scene, generate_scene

from .data import KIND_NAMES, token_labels
from .dev_worlds import FILLS, dev_accuracy, dev_pictures
from .language import Packer
from .model import TOKENS, build_tokenizer

ARMS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "unpruned": None,
    "ptp .5": ("ptp", {"keep_ratio": 0.5}),
    "ptp .5, layer 0": ("ptp", {"keep_ratio": 0.5, "layer": 0}),
    "ptp .25": ("ptp", {"keep_ratio": 0.25}),
    "divprune .5": ("divprune", {"keep_ratio": 0.5, "layer": 2}),
    "random .5": ("random", {"keep_ratio": 0.5, "layer": 2}),
}
TILES = {"crowded": (9, 12), "usual": (6, 12)}


def counted(loaded: LoadedModel, scenes: Sequence[Scene], pruner: TokenPruner | None) -> dict[str, float]:
    """Shares in % of the counts that are right, too low and too high, and of what was kept of the counted objects."""
    said, kept = [], []
    for scene in scenes:
        labels = token_labels(scene)
        for question in all_questions(scene)["count"]:
            kind = KIND_NAMES.index(question.text.split()[2].removesuffix("s"))
            inputs = make_prompt(loaded.model, loaded.processor, [scene.image], question.text, loaded.image_options)
            with torch.no_grad(), loaded.attached(pruner):
                token = loaded.model(**inputs).logits[0, -1].argmax()
            answer = loaded.processor.tokenizer.decode(token).strip()
            said.append((int(answer) if answer.isdigit() else -1) - int(question.answer))
            if pruner is not None:
                assert pruner.report is not None
                stays = np.isin(np.arange(TOKENS * scene.tiles), pruner.report.images[0].kept.numpy())
                groups = [(group == kind).ravel() for group in (labels.centre, labels.kind)]
                kept.append([number for group in groups for number in (group.sum(), (group & stays).sum())])
    off = np.array(said)
    shares = {"right": float((off == 0).mean()), "low": float((off < 0).mean()), "high": float((off > 0).mean())}
    if kept:
        middles, middles_kept, tokens, tokens_kept = np.sum(kept, axis=0)
        shares |= {"middles kept": middles_kept / middles, "tokens kept": tokens_kept / tokens}
    return {name: round(100 * share, 1) for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.counts", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(CHECKPOINT))
    parser.add_argument("--scenes", type=int, default=30, help="of each kind")
    parser.add_argument("--dev", type=int, default=64, help="pictures of each world; 0: counts alone")
    options = parser.parse_args()
    loaded = LoadedModel.load(Checkpoint.find(options.checkpoint), torch.device("cpu"), "float32")
    if options.dev:
        packer = Packer(build_tokenizer())
        for world, pictures in dev_pictures(options.dev).items():
            print(json.dumps({"world": world, **dev_accuracy(loaded.model, packer, world, pictures)}), flush=True)
    for world, tiles in TILES.items():
        scenes = [generate_scene("dev", 5000 + i, fill=FILLS[world], tiles=tiles) for i in range(options.scenes)]
        for name, arm in ARMS.items():
            pruner = None if arm is None else make_pruner(*arm)
            print(json.dumps({"counts": world, "arm": name, **counted(loaded, scenes, pruner)}), flush=True)


if __name__ == "__main__":
    main()
