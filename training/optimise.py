"""The optimiser, its schedule, and runs that can be continued: shared by all stages."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .muon import StackedMuon

RUNS = Path(__file__).parent / "runs"
JOINT = RUNS / "joint"
"""The checkpoint that stage C writes and stage D starts from."""
LOGS = Path(__file__).parent / "logs"


class Optimiser:
    """Muon for the matrices inside the transformers, AdamW for everything else; warm-up, plateau, decay."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        steps: int,
        muon: float,
        adam: float,
        warmup: int = 100,
        stacked: bool = False,
    ) -> None:
        """``stacked``: matrices of one shape in one operation, faster on a GPU."""
        matrices = {n: p for n, p in parameters.items() if p.ndim == 2 and not _is_table(n)}
        others = {n: p for n, p in parameters.items() if n not in matrices}
        self.parameters = list(parameters.values())
        self.parts: list[torch.optim.Optimizer] = []
        if matrices and stacked:
            self.parts.append(
                StackedMuon(list(matrices.values()), lr=muon, momentum=0.95, weight_decay=0.01, ns_steps=4)
            )
        elif matrices:
            self.parts.append(
                torch.optim.Muon(
                    list(matrices.values()),
                    lr=muon,
                    momentum=0.95,
                    weight_decay=0.01,
                    ns_steps=4,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        fused = all(p.is_cuda for p in others.values())
        self.parts.append(
            torch.optim.AdamW(list(others.values()), lr=adam, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        )
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.steps, self.warmup, self.start = steps, warmup, 0

    def restart(self, step: int) -> None:
        """Warm up again from this step on."""
        self.start = step

    def slow(self, factor: float) -> None:
        """Lower the peak rates."""
        self.peaks = [[peak * factor for peak in peaks] for peaks in self.peaks]

    def rate(self, step: int, done: float | None = None) -> float:
        """Share of the peak rates: warm-up, plateau, and a straight way down over the last 40% of the run.

        done : how much of the run, 0 to 1, is done; None for the share of the steps.
        """
        done = step / self.steps if done is None else done
        warm = min(1.0, (step - self.start + 1) / self.warmup)
        return warm * max(0.01, min(1.0, (1 - done) / 0.4))

    def step(self, step: int, done: float | None = None) -> torch.Tensor:
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.rate(step, done)
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _is_table(name: str) -> bool:
    """Embeddings and classifiers are matrices, but not maps between hidden states."""
    return any(word in name for word in ("embed", "object_", "contents", "lm_head"))


class Run:
    """A stage's saved state and its log of JSON lines."""

    def __init__(self, name: str) -> None:
        self.path = RUNS / f"{name}.pt"
        self.log_path = LOGS / f"{name}.jsonl"
        RUNS.mkdir(exist_ok=True)
        LOGS.mkdir(exist_ok=True)
        self.began = time.monotonic()

    def log(self, **values: Any) -> None:
        values = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        values["seconds"] = round(time.monotonic() - self.began)
        with self.log_path.open("a") as file:
            file.write(json.dumps(values) + "\n")
        print(json.dumps(values), flush=True)

    def save(self, **state: Any) -> None:
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None
