"""Stage D, run: ``python -m training worlds``: the checkpoint learns the other worlds, on one GPU in minutes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from .data import scaled_pixels
from .dev_worlds import dev_accuracy, dev_pictures
from .language import CAPTION, KINDS_ASKED, Packer, attention_mask, embedded
from .model import build_model, build_tokenizer, deepen, grow, save, shallow
from .optimise import JOINT, RUNS, Optimiser
from .stage_vision import WEIGHTS
from .stream import Stream
from .vision import VisionHeads, tensors, vision_accuracy, vision_features, vision_losses
from .worlds import maker

SEEN = WEIGHTS | {"beside": 1.0, "below": 1.0}
"""Weights of the vision losses; pages need their rows and columns read."""
SHELF = 96  # items that wait for their turn
ALWAYS_WAIT = 8  # the first items are waited for


@dataclass
class Options:
    """What the command line says.

    Attributes:
        out: folder of the run: ``checkpoint/``, ``worlds.jsonl``, ``state.pt``.
        start: the checkpoint to start from.
        minutes: of training alone, over all starts of a run; the rates fit themselves to it.
        workers: processes that draw.
        tiles: of an item, thumbnails included.
        questions: about each picture, in each of ``uses`` sets.
        pages: their share among the pictures.
        heads_first: steps in which the vision losses train their own heads alone.
        vision: weight of the vision losses.
        drop: lowest layers of the language model to leave out at the start.
        deepen: when, in shares of the run, a silent layer is put below the language model's; over 1: never.
        save_every: seconds from one writing of the checkpoint to the next.
        dev: pictures of each world of the development split to measure at the end.
    """

    out: Path = RUNS / "worlds"
    start: Path = JOINT
    minutes: float = 6.5
    device: str = "cpu"
    workers: int = 1
    tiles: int = 832
    questions: int = 10
    uses: int = 3
    pages: float = 0.6
    muon: float = 3e-3
    adam: float = 1.5e-3
    warmup: int = 200
    heads_first: int = 60
    vision: float = 0.7
    drop: int = 0
    precision: str = "tf32"
    deepen: float = 0.85
    save_every: float = 45.0
    dev: int = 96
    seed: int = 4


def train_worlds(options: Options) -> None:
    if not options.start.is_dir():
        raise SystemExit(f"{options.start}: no checkpoint; train the stages before first, or give --start")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    packer = Packer(tokenizer)
    saved = options.out / "state.pt"
    state = torch.load(saved, weights_only=True) if saved.exists() else None
    first = 0 if state is None else int(state["step"])
    stream = Stream(maker(packer, options), first, options.workers)
    try:
        Training(options, tokenizer, packer, stream, state).run()
    finally:
        stream.close()


class Training:
    def __init__(self, options: Options, tokenizer: Any, packer: Packer, stream: Stream, state: Any) -> None:
        self.options, self.packer, self.stream, self.tokenizer = options, packer, stream, tokenizer
        self.device = torch.device(options.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.pictures = dev_pictures(options.dev)
        self.heads = VisionHeads(tokenizer, scale=0.5)
        deeper = 0
        if state is None:
            old = AutoModelForImageTextToText.from_pretrained(options.start)
            weights = grow(old.state_dict(), AutoTokenizer.from_pretrained(options.start), tokenizer)
            weights = shallow(weights, options.drop)
            self.step, self.before = 0, 0.0
        else:
            weights, self.step, self.before = state["model"], state["step"], state["seconds"]
            deeper = state["deeper"]
        self.deeper = deeper
        self.model = build_model(tokenizer, options.seed, layers=text_layers(weights))
        self.model.load_state_dict(weights)
        self._place()
        if state is not None:
            self.heads.load_state_dict(state["heads"])
            self.optimiser.load_state_dict(state["optimiser"])
        self.began = time.monotonic()
        if state is None:
            self.keep()
        self.log(step=self.step, resumed=state is not None, parameters=sum(p.numel() for p in self.model.parameters()))

    def _place(self) -> None:
        """Move everything to the device and make an optimiser for it."""
        self.model.to(self.device).train()
        self.heads.to(self.device)
        trained = dict(self.model.named_parameters()) | {f"heads.{n}": p for n, p in self.heads.named_parameters()}
        self.optimiser = Optimiser(trained, 0, self.options.muon, self.options.adam, self.options.warmup, stacked=True)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.options.minutes)

    def log(self, **values: Any) -> None:
        values["seconds"] = round(self.seconds, 1)
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
        with (self.options.out / "worlds.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self) -> None:
        rng = np.random.default_rng([self.options.seed, self.step])
        shelf: list[tuple[dict[str, Tensor], list[dict[str, Tensor]]]] = []
        tally: list[Tensor] = []
        uses: list[int] = []
        told = saved = time.monotonic()
        counted = self.step
        fresh = 0
        while self.progress < 1:
            self.stream.tell(self.progress)
            for _ in range(2):
                item = self.stream.next(len(shelf) < ALWAYS_WAIT, self._on_device)
                if item is None:
                    break
                fresh += 1
                place = len(shelf) if len(shelf) < SHELF else int(np.argmax(uses))
                shelf[place : place + 1] = [item]
                uses[place : place + 1] = [0]
            least = min(uses)
            ready = [i for i, n in enumerate(uses) if n == least]
            index = ready[int(rng.integers(len(ready)))]
            batch, packs = shelf[index]
            tally.append(self._step(batch, packs[uses[index] % len(packs)]))
            uses[index] += 1
            self.step += 1
            if (now := time.monotonic()) - told > 10:
                each = (now - told) / (self.step - counted)
                self.log(
                    step=self.step, each=each, progress=self.progress, items=fresh, reused=max(uses), **lines(tally)
                )
                healthy = bool(torch.isfinite(torch.stack(tally)[-1]).all())
                told, counted, tally, fresh = time.monotonic(), self.step, [], 0
                if not healthy:
                    self._go_back()
            if now - saved > self.options.save_every:
                self.keep()
                saved = time.monotonic()
            if not self.deeper and self.progress > self.options.deepen:
                self._deepen()
        self.keep()
        if self.options.dev:
            self.report()

    def _on_device(self, item: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        placed = tensors(item, self.device)
        numbers = sorted({name.split("/")[0] for name in placed if "/" in name})
        packs = [{k.split("/")[1]: v for k, v in placed.items() if k.startswith(f"{n}/")} for n in numbers]
        return {k: v for k, v in placed.items() if "/" not in k}, packs

    def _step(self, batch: dict[str, Tensor], pack: dict[str, Tensor]) -> Tensor:
        """One step; the losses and counts of right answers, left on the device."""
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")
        with cast:
            tokens, cls = vision_features(self.model, scaled_pixels(batch["pixels"]))
            hidden = hidden_states(self.model, pack, tokens)
            at = hidden.flatten(0, 1).index_select(0, pack["where"])
            logits = self.model.lm_head(at)
        answers, counts = answer_losses(logits.float(), pack)
        words = self.model.get_input_embeddings().weight
        tokens, cls = tokens.float(), cls.float()
        if self.step < self.options.heads_first:  # fresh heads do not shake the model
            words, tokens, cls = words.detach(), tokens.detach(), cls.detach()
        seen = vision_losses(self.heads, words, tokens, cls, batch)
        loss = answers + self.options.vision * sum(SEEN[k] * v for k, v in seen.items())
        loss.backward()
        norm = self.optimiser.step(self.step, self.progress)
        zero = torch.zeros((), device=self.device)
        losses = torch.stack([answers, norm, *(seen.get(k, zero) for k in SEEN)]).detach()
        return torch.cat([losses, counts])

    def _deepen(self) -> None:
        """Put a silent layer below the language model's: see training/README.md."""
        weights = deepen(self.model.state_dict(), 1)
        self.model = build_model(self.tokenizer, self.options.seed, layers=text_layers(weights))
        self.model.load_state_dict(weights)
        self.deeper = 1
        self._place()
        self.optimiser.restart(self.step)
        self.log(step=self.step, deepened=text_layers(weights))

    def _go_back(self) -> None:
        """After a loss that is no number: the state as it was written last."""
        state = torch.load(self.options.out / "state.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.optimiser.slow(0.5)
        self.log(step=self.step, went_back_to=state["step"])

    def keep(self) -> None:
        """Write the checkpoint and all that is needed to go on; nothing where a weight is no number."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            self.log(step=self.step, kept=False)
            return
        part = self.options.out / "state.part"
        torch.save(
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "deeper": self.deeper,
            },
            part,
        )
        part.replace(self.options.out / "state.pt")
        save(self.model, self.options.out / "checkpoint")

    def report(self) -> None:
        """Accuracy on the development split, world by world."""
        self.model.eval()
        for world, pictures in self.pictures.items():
            kind = "documents" if world == "documents" else "scenes"
            some = pictures[:32]
            self.log(step=self.step, world=world, **dev_accuracy(self.model, self.packer, world, pictures))
            self.log(step=self.step, world=world, kind=kind, vision=vision_accuracy(self.model, self.heads, some))
        self.model.train()


def text_layers(state: dict[str, Tensor]) -> int:
    return 1 + max(int(n.split("layers.")[1].split(".")[0]) for n in state if "language_model.layers." in n)


def hidden_states(model: nn.Module, pack: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """As ``language.hidden_states``, for pictures of one size: their tokens stand at the same places in every row."""
    ids = pack["ids"].long()
    return model.model.language_model(
        inputs_embeds=embedded(model, ids, tokens.reshape(len(ids), -1, tokens.shape[-1])),
        attention_mask=attention_mask(pack["block"]),
        position_ids=pack["position"].long(),
        use_cache=False,
    ).last_hidden_state


def answer_losses(logits: Tensor, pack: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of the answers, and how many targets of each kind there were and were met: [2 * (kinds + 2)]."""
    target, kind = pack["target"], pack["kind"]
    each = F.cross_entropy(logits, target, reduction="none")
    listing, ending = (kind == CAPTION).float(), (kind > CAPTION).float()
    answer = 1 - listing - ending
    loss = (each * answer).sum() / answer.sum() + 0.1 * (each * ending).sum() / ending.sum()
    loss = loss + (each * listing).sum() / listing.sum().clamp(min=1)
    right = (logits.detach().argmax(-1) == target).float()
    counts = torch.zeros(2, CAPTION + 2, device=logits.device)
    counts[0].index_add_(0, kind, torch.ones_like(right))
    counts[1].index_add_(0, kind, right)
    return loss, counts.flatten()


def lines(tally: list[Tensor]) -> dict[str, Any]:
    """Means of the losses and shares of right answers since the last line."""
    total = torch.stack(tally).sum(0).cpu()
    names = ["answer", "norm", *SEEN]
    losses = {name: float(total[i]) / len(tally) for i, name in enumerate(names)}
    asked, right = total[len(names) :].reshape(2, -1).tolist()
    kinds = [*KINDS_ASKED, "caption", "ending"]
    shares = {k: round(r / a, 3) for k, a, r in zip(kinds, asked, right, strict=True) if a}
    return {k: round(v, 4) for k, v in losses.items()} | {"right": shares}
