"""Stage A, run: ``python -m training vision``."""

from __future__ import annotations

import time

from ptprune.tiny.scenes import generate_scene

from .data import normalise, prefetch
from .model import build_model, build_tokenizer, is_language_layer
from .optimise import Optimiser, Run
from .vision import VisionHeads, make_batch, tensors, vision_accuracy, vision_features, vision_losses

WEIGHTS = {
    "identity": 1.0,
    "colour": 0.5,
    "kind": 0.25,
    "centre": 0.5,
    "beside": 0.5,
    "below": 0.5,
    "contents": 0.3,
    "caption": 0.3,
    "thumbnail": 0.5,
}


def train_vision(
    steps: int = 4200, tiles: int = 64, muon: float = 4e-3, adam: float = 2e-3, name: str = "vision", seed: int = 1
) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    heads = VisionHeads(tokenizer)
    trained = {
        **{n: p for n, p in model.named_parameters() if not is_language_layer(n)},
        **{f"heads.{n}": p for n, p in heads.named_parameters()},
    }
    optimiser = Optimiser(trained, steps, muon, adam)
    run, first = Run(name), 0
    if (state := run.load()) is not None:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        run.log(resumed=first)
    development = [generate_scene("dev", i) for i in range(40)]
    sums: dict[str, float] = {}
    since = time.monotonic()
    for step, batch in zip(range(first, steps), prefetch(lambda s: make_batch(s, tiles), first), strict=False):
        tokens, cls = vision_features(model, normalise(batch["pixels"]))
        losses = vision_losses(heads, model.get_input_embeddings().weight, tokens, cls, tensors(batch))
        sum(WEIGHTS[k] * v for k, v in losses.items()).backward()
        norm = float(optimiser.step(step))
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        sums["norm"] = sums.get("norm", 0.0) + norm
        if (step + 1) % 50 == 0:
            each = (time.monotonic() - since) / 50
            run.log(step=step + 1, each=each, **{k: v / 50 for k, v in sums.items()})
            sums, since = {}, time.monotonic()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            run.log(step=step + 1, dev=vision_accuracy(model, heads, development))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            run.save(
                model=model.state_dict(), heads=heads.state_dict(), optimiser=optimiser.state_dict(), step=step + 1
            )
