"""Independent oracles: PTP written out slowly, and the stock model made to ignore what was dropped.

Nothing here imports the package: a bug in it cannot hide in its own oracle.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def blocked(
    model: nn.Module,
    dropped: Tensor,
    layer: int,
    attention_mask: Tensor,
    prompt_end: Tensor | None = None,
    compact: bool = False,
) -> Iterator[None]:
    """The stock model, each layer with an additive 4D mask that blocks dropped positions.

    A dropped position is blocked for every query in the layers >= ``layer``, and in all layers for the queries from
    ``prompt_end`` on (generated tokens and later turns). To be used without a cache: every call sees everything.

    Args:
        dropped: BoolTensor [batch, prompt]; for beams the rows repeat.
        attention_mask: [batch, prompt].
        prompt_end: LongTensor [prompt], for each position the length of the prompt it came with; all of it by default.
        compact: whether the layers >= ``layer`` number the remaining tokens anew.
    """
    length = dropped.shape[1]
    ends = torch.full((length,), length) if prompt_end is None else prompt_end

    def mask_for(index: int, batch: int, total: int, dtype: torch.dtype) -> Tensor:
        copies = batch // len(dropped)
        gone = nn.functional.pad(dropped, (0, total - length)).repeat_interleave(copies, 0)
        real = nn.functional.pad(attention_mask.bool(), (0, total - length), value=True).repeat_interleave(copies, 0)
        query, key = torch.arange(total)[:, None], torch.arange(total)[None]
        later = query >= nn.functional.pad(ends, (0, total - length), value=10**9)[None]
        block = gone[:, None, :] & (torch.ones_like(later) if index >= layer else later)
        allowed = (key <= query) & real[:, None, :] & ~block
        mask = torch.zeros(batch, 1, total, total, dtype=dtype)
        return mask.masked_fill(~allowed[:, None], torch.finfo(dtype).min)

    def before(index: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        states = args[0]
        batch, total = states.shape[:2]
        kwargs = {**kwargs, "attention_mask": mask_for(index, batch, total, states.dtype)}
        if compact and index >= layer:
            gone = nn.functional.pad(dropped, (0, total - length)).repeat_interleave(batch // len(dropped), 0)
            position_ids = (kwargs["position_ids"] - gone.cumsum(1)).clamp(min=0)
            kwargs["position_embeddings"] = model.model.language_model.rotary_emb(states, position_ids)
        return args, kwargs

    hooks = [
        module.register_forward_pre_hook(lambda m, a, k, i=i: before(i, m, a, k), with_kwargs=True)
        for i, module in enumerate(model.model.language_model.layers)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def eager_twin(model: nn.Module) -> nn.Module:
    """The same weights with eager attention, which can show its maps."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def minmax(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def slow_ptp(
    model: nn.Module,
    inputs: dict[str, Tensor],
    *,
    keep_ratio: float,
    layer: int,
    alpha: float = 0.5,
    temperature: float,
    image_token: int,
    tokens_per_tile: int,
) -> list[list[int]]:
    """Kept token indices of every image of the batch in order, by loops over stock attention maps."""
    twin = eager_twin(model)
    with torch.no_grad():
        vision = twin.model.vision_tower(inputs["pixel_values"], output_attentions=True)
        text = twin(**inputs, output_attentions=True)
    vision_map, text_map = vision.attentions[-1], text.attentions[max(layer - 1, 0)]
    cls = vision.last_hidden_state[:, 0]
    side = round((vision_map.shape[-1] - 1) ** 0.5)
    kept_all, first_tile = [], 0
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        where = [i for i, token in enumerate(ids) if token == image_token]
        if not where:
            continue
        valid = inputs["attention_mask"][row].bool().tolist()
        writing = [i for i, token in enumerate(ids) if valid[i] and token != image_token]
        instruction = [i for i in writing if i > where[-1]] or writing
        runs: list[list[int]] = []
        for position in where:
            if runs and runs[-1][-1] == position - 1:
                runs[-1].append(position)
            else:
                runs.append([position])
        for run in runs:
            tiles = len(run) // tokens_per_tile
            total = max(1, round(keep_ratio * len(run)))
            bottom = []
            for tile in range(first_tile, first_tile + tiles):
                patches = [vision_map[tile, :, 0, 1 + p].mean().item() for p in range(side * side)]
                for y in range(0, side, 2):
                    for x in range(0, side, 2):
                        block = [patches[(y + dy) * side + x + dx] for dy in (0, 1) for dx in (0, 1)]
                        bottom.append(sum(block) / 4)
            top = [max(text_map[row, :, i, j].mean().item() for i in instruction) for j in run]
            fused = [(1 - alpha) * b + alpha * c for b, c in zip(minmax(bottom), minmax(top), strict=True)]
            if tiles == 1:
                budgets = [total]
            else:
                thumbnail = first_tile + tiles - 1
                similarity = [
                    torch.cosine_similarity(cls[t].double(), cls[thumbnail].double(), dim=0).item()
                    for t in range(first_tile, thumbnail)
                ]
                mean = sum(similarity) / len(similarity)
                spread = math.sqrt(sum((s - mean) ** 2 for s in similarity) / len(similarity))
                weights = [math.exp((s - mean) / spread / temperature) if spread > 1e-6 else 1.0 for s in similarity]
                share = round(total / tiles)
                share = max(min(share, tokens_per_tile), total - tokens_per_tile * (tiles - 1))
                budgets = [*slow_budgets(weights, tokens_per_tile, total - share), share]
            kept = []
            for tile, budget in enumerate(budgets):
                mine = range(tile * tokens_per_tile, (tile + 1) * tokens_per_tile)
                kept += sorted(mine, key=lambda j: (-fused[j], j))[:budget]
            kept_all.append(sorted(kept))
            first_tile += tiles
    return kept_all


def slow_budgets(weights: list[float], capacity: int, total: int) -> list[int]:
    """Water-filling by pouring in tiny drops of one proportion, then largest remainder: equal capacities only."""
    shares, full = [0.0] * len(weights), set()
    left = float(total)
    while left > 1e-12 and len(full) < len(weights):
        mass = sum(w for i, w in enumerate(weights) if i not in full)
        # the largest step that fills no region beyond its capacity
        step = min([left / mass] + [(capacity - shares[i]) / w for i, w in enumerate(weights) if i not in full])
        for i, w in enumerate(weights):
            if i not in full:
                shares[i] += step * w
        left -= step * mass
        full |= {i for i, s in enumerate(shares) if s >= capacity - 1e-9}
    budgets = [min(capacity, math.floor(s + 1e-9)) for s in shares]
    for i in sorted(range(len(shares)), key=lambda i: (budgets[i] - shares[i], i))[: total - sum(budgets)]:
        budgets[i] += 1
    return budgets
