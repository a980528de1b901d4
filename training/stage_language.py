"""Stages B and C, run: ``python -m training language`` and ``python -m training joint``."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from ptprune.tiny.questions import QUESTION_KINDS
from ptprune.tiny.scenes import generate_scene

from .data import cut_tiles, normalise, prefetch
from .language import Packer, conversations, hidden_states, language_accuracy, language_losses, make_scenes
from .model import TEXT_LAYERS, build_model, build_tokenizer, deepen, is_language_layer, save
from .optimise import JOINT, Optimiser, Run
from .stage_vision import WEIGHTS
from .vision import VisionHeads, make_batch, tensors, vision_accuracy, vision_features, vision_losses

# Share of the steps done -> numbers of tiles to draw from. Binding a colour to a digit is learnt on easy scenes.
CURRICULUM = (
    (0.06, (1, 2)),
    (0.15, (1, 2, 3, 4)),
    (0.30, (2, 3, 4, 6)),
    (0.50, (2, 4, 6, 8, 9)),
    (1.01, (3, 4, 6, 6, 8, 8, 9, 9, 10, 10, 12, 12)),
)

DEEPER = 1
"""Layers that stage C puts below the language model's."""


def tile_count(seed: int, progress: float) -> int:
    choices = next(counts for limit, counts in CURRICULUM if min(progress, 1.0) < limit)
    return choices[int(np.random.default_rng([seed, 5]).integers(len(choices)))]


def make_item(
    seed: int,
    progress: float,
    scenes: int,
    uses: int,
    questions: int,
    packer: Packer,
    fill: tuple[float, float] = (0.3, 0.8),
) -> dict[str, Any]:
    """Scenes of one size with ``uses`` different sets of questions."""
    tiles = tile_count(seed, progress)
    drawn = make_scenes(seed + 20_000, scenes, tiles, fill=(0.7, 1.0) if tiles <= 2 else fill)
    packs = [
        packer.pack(
            drawn,
            [conversations(s, s.seed * 31 + 2 * use, questions, use == 0, use % 2 == 1, extra=4) for s in drawn],
        )
        for use in range(uses)
    ]
    return {"pixels": np.concatenate([cut_tiles(s) for s in drawn]), "packs": packs}


class Tally:
    """Sums over the steps between two lines of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.steps, self.since = 0, time.monotonic()

    def add(self, notes: dict[str, float]) -> None:
        self.steps += 1
        for key, value in notes.items():
            self.sums[key] += value

    def line(self) -> dict[str, Any]:
        sums = self.sums
        line: dict[str, Any] = {"each": (time.monotonic() - self.since) / self.steps}
        line |= {k: v / self.steps for k, v in sums.items() if "/" not in k}
        line["right"] = {
            k: round(sums[f"right/{k}"] / sums[f"asked/{k}"], 3) for k in QUESTION_KINDS if sums[f"asked/{k}"]
        }
        self.__init__()  # type: ignore[misc]
        return line


def train_language(
    steps: int = 2400,
    scenes: int = 16,
    questions: int = 8,
    uses: int = 3,
    buffer: int = 24,
    muon: float = 4e-3,
    adam: float = 1e-3,
    vision: str = "vision",
    name: str = "language",
    seed: int = 2,
) -> None:
    """The language model on the frozen vision tower. Each picture is looked at once and asked about ``uses`` times."""
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer)
    model = build_model(tokenizer, seed)
    trained = {n: p for n, p in model.named_parameters() if "language_model" in n}
    optimiser = Optimiser(trained, steps, muon, adam)
    run, first = Run(name), 0
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        run.log(resumed=first)
    else:
        towers = Run(vision).load()
        if towers is None:
            raise SystemExit("train the vision stage first: python -m training vision")
        fresh = {n: v for n, v in model.state_dict().items() if is_language_layer(n)}
        model.load_state_dict(towers["model"] | fresh)
    development = [generate_scene("dev", 1000 + i) for i in range(60)]
    rng = np.random.default_rng([seed, first])
    source = prefetch(lambda s: make_item(s, s * uses / steps, scenes, uses, questions, packer), first // uses, ahead=3)
    shelf: list[tuple[torch.Tensor, list]] = []
    tally = Tally()
    for step in range(first, steps):
        while len(shelf) < min(buffer, 1 + (step - first) // 2):
            item = next(source)
            with torch.no_grad():
                shelf.append((vision_features(model, normalise(item["pixels"]))[0], item["packs"]))
        index = int(rng.integers(len(shelf)))
        tokens, packs = shelf[index]
        pack = packs.pop()
        if not packs:
            shelf.pop(index)
        loss, notes = language_losses(model, pack, hidden_states(model, pack, tokens))
        loss.backward()
        notes["norm"] = float(optimiser.step(step))
        tally.add(notes)
        if (step + 1) % 50 == 0:
            run.log(step=step + 1, **tally.line())
        if (step + 1) % 400 == 0 or step + 1 == steps:
            run.log(step=step + 1, dev=language_accuracy(model, packer, development))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            run.save(model=model.state_dict(), optimiser=optimiser.state_dict(), step=step + 1)
    source.close()


def train_jointly(
    steps: int = 600,
    scenes: int = 8,
    questions: int = 10,
    tiles: int = 24,
    muon: float = 6e-4,
    adam: float = 2e-4,
    vision: str = "vision",
    language: str = "language",
    name: str = "joint",
    seed: int = 3,
) -> None:
    """Everything together, end to end, on full scenes; the vision losses stay. Writes a checkpoint.

    The language model is deepened first: see training/README.md.
    """
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer)
    model = build_model(tokenizer, seed, TEXT_LAYERS + DEEPER)
    heads = VisionHeads(tokenizer)
    trained = {**dict(model.named_parameters()), **{f"heads.{n}": p for n, p in heads.named_parameters()}}
    optimiser = Optimiser(trained, steps, muon, adam, warmup=30)
    run, first = Run(name), 0
    earlier, towers = Run(language).load(), Run(vision).load()
    if earlier is None or towers is None:
        raise SystemExit("train the stages before first: python -m training vision, then language")
    words = towers["model"]["model.language_model.embed_tokens.weight"]  # as the projector knows them
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        run.log(resumed=first)
    else:
        model.load_state_dict(deepen(earlier["model"], DEEPER))
        heads.load_state_dict(towers["heads"])
    development = [generate_scene("dev", 1000 + i) for i in range(80)]

    def make(step: int) -> dict[str, Any]:
        item = make_item(50_000 + step, 1.0, scenes, 1, questions, packer, fill=(0.2, 1.0))
        item["extra"] = make_batch(100_000 + step, tiles)
        return item

    source = prefetch(make, first)
    tally = Tally()
    for step in range(first, steps):
        item = next(source)
        extra = item["extra"]
        both = np.concatenate([item["pixels"], extra["pixels"]])
        tokens, cls = vision_features(model, normalise(both))
        cut = len(item["pixels"])
        loss, notes = language_losses(model, item["packs"][0], hidden_states(model, item["packs"][0], tokens[:cut]))
        losses = vision_losses(heads, words, tokens[cut:], cls[cut:], tensors(extra))
        notes |= {f"vision {k}": float(v.detach()) for k, v in losses.items()}
        (loss + 0.5 * sum(WEIGHTS[k] * v for k, v in losses.items())).backward()
        notes["norm"] = float(optimiser.step(step))
        tally.add(notes)
        if (step + 1) % 25 == 0:
            run.log(step=step + 1, **tally.line())
        if (step + 1) % 200 == 0 or step + 1 == steps:
            run.log(step=step + 1, dev=language_accuracy(model, packer, development))
            run.log(step=step + 1, vision=vision_accuracy(model, heads, development[:40], words))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            run.save(
                model=model.state_dict(), heads=heads.state_dict(), optimiser=optimiser.state_dict(), step=step + 1
            )
    source.close()
    save(model, JOINT)
