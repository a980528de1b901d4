"""Instruction-guided level: which tokens this question needs (PTP, top-down)."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

INSTRUCTION_SCORES = ScoreRegistry("instruction")

# Attention rows held at a time: bounds the memory at batch x heads x 64 x sequence whatever the question's length.
ROWS_AT_A_TIME = 64


@INSTRUCTION_SCORES.register("attention", needs=("instruction_attention",))
def attention(image: ImageEvidence) -> Tensor:
    """Strongest attention that any instruction token pays to the visual token at one LLM layer (the paper's)."""
    return image.require("instruction_attention")


@torch.no_grad()
def instruction_rows(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    key_valid: Tensor,
    scaling: float,
    key_columns: Tensor,
    window: int | None = None,
) -> Tensor:
    """``c_j = max_i mean_heads softmax(q_i K^T * scaling)_j`` over the instruction tokens i of one prompt.

    Causal and padding masks and the layer's sliding window apply. Only the instruction's rows are computed,
    ``ROWS_AT_A_TIME`` at a time.

    Args:
        query: [heads, queries, head_dim], the last ``queries`` of the sequence, after rotary embedding.
        key: [key_value_heads, keys, head_dim], keys >= queries (a cache may stand before them).
        rows: LongTensor [rows], query indices of the instruction tokens.
        key_valid: BoolTensor [keys], False on padding.
        key_columns: LongTensor [keys], where each key stood in the sequence; the queries' own come last.
        window: how far back the layer sees, itself included; None: all the way.

    Returns:
        FloatTensor [keys]; zeros without an instruction.
    """
    heads, queries, head_dim = query.shape
    key_heads, keys, _ = key.shape
    key_transposed = key.float().transpose(-1, -2)
    best = torch.zeros(keys, device=query.device)
    for chunk in rows.split(ROWS_AT_A_TIME) if len(rows) else ():
        picked = query[:, chunk].float() * scaling
        # [key_heads, groups * rows, head_dim]: grouped queries share their keys without repeating them
        logits = (picked.reshape(key_heads, -1, head_dim) @ key_transposed).reshape(heads, len(chunk), keys)
        distance = key_columns[chunk + keys - queries][:, None] - key_columns
        hidden = ~key_valid | (distance < 0)
        if window is not None:
            hidden |= distance >= window
        logits.masked_fill_(hidden, torch.finfo(logits.dtype).min)
        best = torch.maximum(best, torch.softmax(logits, dim=-1).mean(dim=0).amax(dim=0))
    return best
