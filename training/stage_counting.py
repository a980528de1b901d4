"""Stage E, run: ``python -m training counting``: counts that do not depend on how much background a picture has.

Stage D's model counts by the share of attention that objects get, so its counts change with the background around them.
Here pictures get more background than they had: tokens that show nothing are repeated at random places. What counts is
then no share. Nothing is ever dropped. The vision tower and the first layers of the language model stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from ptprune.tiny.documents import Document
from ptprune.tiny.questions import QUESTION_KINDS, ask
from ptprune.tiny.scenes import Scene

from .data import NONE, cut_tiles, normalise, print_labels, token_labels
from .language import Pack, Packer, attention_mask, conversations, embedded, language_losses
from .model import TOKENS, build_model, build_tokenizer, is_language_layer, save
from .optimise import RUNS, Optimiser, Run
from .vision import vision_features
from .worlds import draw, visual_tokens

WORLDS = RUNS / "worlds" / "checkpoint"
"""The checkpoint that stage D writes."""
SIZES = (2, 3, 4, 6, 6, 8, 8, 9, 9, 10, 10, 12, 12, 12)
"""Numbers of tiles to draw from."""
MOST_EXTRA = 2.0
"""Background tokens to add at most, as a multiple of a picture's tokens."""
COUNT = QUESTION_KINDS.index("count")


@dataclass
class Example:
    """A picture with what the frozen tower makes of it.

    Attributes:
        picture: without its pixels.
        tokens: float32 [visual tokens, width], projected.
        empty: bool [visual tokens], those that show nothing; the thumbnail's are not among them.
        middle: bool [visual tokens], those in an object's middle.
    """

    picture: Scene | Document
    tokens: np.ndarray
    empty: np.ndarray
    middle: np.ndarray


@torch.no_grad()
def example(model: nn.Module, picture: Scene | Document) -> Example:
    tokens = vision_features(model, normalise(cut_tiles(picture)))[0].flatten(0, 1).numpy()
    marks = print_labels(picture) if isinstance(picture, Document) else token_labels(picture)
    rest = len(tokens) - TOKENS * picture.tiles
    empty, middle = marks.kind.ravel() == NONE, marks.centre.ravel() != NONE
    pixels: dict[str, Any] = {"image": None}
    if isinstance(picture, Scene):
        pixels["owner"] = None
    return Example(replace(picture, **pixels), tokens, np.pad(empty, (0, rest)), np.pad(middle, (0, rest)))


def examples(model: nn.Module, count: int, pages: float, seed: int) -> dict[tuple[int, bool], list[Example]]:
    """Pictures of the training split by their number of tiles, pages and scenes apart."""
    rng = np.random.default_rng([seed, 53])
    found: dict[tuple[int, bool], list[Example]] = defaultdict(list)
    for number in range(count):
        tiles = SIZES[int(rng.integers(len(SIZES)))]
        picture = draw(40_000_000 + seed * 1_000_000 + number, tiles, pages, rng)
        found[picture.tiles, isinstance(picture, Document)].append(example(model, picture))
    return dict(found)


def with_background(
    pack: Pack, some: list[Example], extra: int, rng: np.random.Generator
) -> tuple[Pack, np.ndarray, np.ndarray]:
    """A pack whose pictures have ``extra`` more tokens of their own background, at random places.

    In half of the sequences, positions jump at random places too.

    Returns:
        the pack; tokens float32 [pictures, tokens, width]; middle bool [pictures, tokens].
    """
    visual = visual_tokens(some[0].picture.tiles)
    columns, places, tokens, middle = [], [], [], []
    for row, one in enumerate(some):
        nothing = np.flatnonzero(one.empty)
        added = rng.choice(nothing if len(nothing) else [visual - 1], extra)  # a full picture: its thumbnail's last
        order = np.insert(np.arange(visual), rng.integers(0, visual + 1, extra), added)
        tokens.append(one.tokens[order])
        middle.append(one.middle[order])
        columns.append(np.concatenate([[0, 1], 2 + order, np.arange(2 + visual, pack.ids.shape[1])]))
        steps = np.ones(visual + extra + 3, np.int64)
        if rng.random() < 0.5:
            steps += rng.geometric(rng.uniform(0.2, 1), len(steps)) - 1
        place = steps.cumsum() - steps[0]
        text = pack.position[row, 3 + visual :] - (2 + visual) + place[-1]
        places.append(np.concatenate([place, text]))
    at = np.stack(columns)
    wide = {name: np.take_along_axis(getattr(pack, name), at, 1) for name in ("ids", "block", "target", "kind")}
    return Pack(position=np.stack(places), **wide), np.stack(tokens), np.stack(middle)


def forward(model: nn.Module, pack: Pack, tokens: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden states, and the attention that questions of counting and the picture's end pay on average to tokens
    that are no object's middle. On pages, where nothing is counted, nothing is paid."""
    end = 2 + tokens.shape[1]
    said = model.model.language_model(
        inputs_embeds=embedded(model, torch.from_numpy(pack.ids), tokens),
        attention_mask=attention_mask(torch.from_numpy(pack.block)),
        position_ids=torch.from_numpy(pack.position),
        use_cache=False,
        output_attentions=True,
    )
    asking = torch.from_numpy(counting(pack))
    other = torch.cat([torch.zeros(len(middle), 2, dtype=torch.bool), ~middle], dim=1)
    weights = torch.stack(said.attentions)[..., :end]
    each = (weights * other[:, None, None]).sum(-1).mean((0, 2))  # [pictures, length], over layers and heads
    paid = each[:, end].mean() + each[asking].mean() if asking.any() else each.sum() * 0
    return said.last_hidden_state, paid


def counting(pack: Pack) -> np.ndarray:
    """bool [pictures, length]: tokens of questions that only count."""
    found = np.zeros(pack.ids.shape, bool)
    for row, (block, kind) in enumerate(zip(pack.block, pack.kind, strict=True)):
        for number in set(block[kind == COUNT]):
            mine = block == number
            if (kind[mine] >= 0).sum() == 1:
                found[row] |= mine
    return found


@dataclass
class Counting:
    """What the command line says.

    Attributes:
        start: the checkpoint to start from.
        out: where the checkpoint is written.
        pictures: to draw, once.
        pages: their share.
        batch: pictures a step.
        penalty: weight of the attention that ``forward`` returns.
        frozen: so many of the language model's first layers stay as they are.
    """

    start: Path = WORLDS
    out: Path = RUNS / "counting"
    steps: int = 3000
    pictures: int = 3000
    pages: float = 0.2
    batch: int = 12
    questions: int = 6
    penalty: float = 1.0
    frozen: int = 2
    muon: float = 1.5e-3
    adam: float = 5e-4
    seed: int = 6


def train_counting(options: Counting) -> None:
    run = Run("counting")
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer)
    old = AutoModelForImageTextToText.from_pretrained(options.start)
    model = build_model(tokenizer, options.seed, layers=old.config.text_config.num_hidden_layers)
    model.load_state_dict(old.state_dict())
    model.set_attn_implementation("eager")  # the loss looks at attention
    pool = examples(model, options.pictures, options.pages, options.seed)
    names = list(pool)
    shares = np.array([len(pool[name]) for name in names]) / options.pictures
    run.log(step=0, pictures=options.pictures)

    frozen = tuple(f"model.language_model.layers.{layer}." for layer in range(options.frozen))
    trained = {n: p for n, p in model.named_parameters() if is_language_layer(n) and not n.startswith(frozen)}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    optimiser = Optimiser(trained, options.steps, options.muon, options.adam, warmup=50)
    state, first = run.load(), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = int(state["step"])
    sums: defaultdict[str, float] = defaultdict(float)
    for step in range(first, options.steps):
        rng = np.random.default_rng([options.seed, step, 59])
        shelf = pool[names[int(rng.choice(len(names), p=shares))]]
        some = [shelf[int(i)] for i in rng.integers(0, len(shelf), options.batch)]
        visual = visual_tokens(some[0].picture.tiles)
        extra = int(rng.uniform(0, MOST_EXTRA) * visual) if rng.random() < 0.7 else 0
        talks = [talk(one.picture, step * 64 + i, options.questions, step) for i, one in enumerate(some)]
        pack, tokens, middle = with_background(
            packer.pack([one.picture for one in some], talks, multiple=16), some, extra, rng
        )
        hidden, paid = forward(model, pack, torch.from_numpy(tokens), torch.from_numpy(middle))
        loss, notes = language_losses(model, pack, hidden)
        (loss + options.penalty * paid).backward()
        optimiser.step(step)
        for name, value in {**notes, "paid": float(paid.detach()), "steps": 1.0}.items():
            sums[name] += value
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            asked = {k: sums[f"asked/{k}"] for k in QUESTION_KINDS}
            right = {k: round(sums[f"right/{k}"] / n, 4) for k, n in asked.items() if n}
            run.log(
                step=step + 1, answer=sums["answer"] / sums["steps"], paid=sums["paid"] / sums["steps"], right=right
            )
            sums.clear()
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            run.save(model=model.state_dict(), optimiser=optimiser.state_dict(), step=step + 1)
            save(model, options.out)


def talk(picture: Scene | Document, seed: int, questions: int, step: int) -> list[list[Any]]:
    """Conversations about a picture; every scene is listed, and asked how many of each kind it holds."""
    chosen = conversations(picture, seed, questions, True, step % 4 == 1)
    if isinstance(picture, Scene):
        chosen += [[question] for question in ask(picture, 3, seed, kinds=("count",))]
    return chosen
