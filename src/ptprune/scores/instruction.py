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


def instruction_rows(
    query: Tensor, key: Tensor, rows: Tensor, row_valid: Tensor, key_valid: Tensor, scaling: float
) -> Tensor:
    """``c_j = max_i mean_heads softmax(q_i K^T * scaling)_j`` over the instruction tokens i, causal and padding masked.

    Only the instruction's rows are computed, ``ROWS_AT_A_TIME`` at a time.

    Args:
        query: [batch, heads, queries, head_dim], the last ``queries`` of the sequence, after rotary embedding.
        key: [batch, key_value_heads, keys, head_dim], keys >= queries (a cache may stand before them).
        rows: LongTensor [batch, max_rows], query indices of the instruction tokens.
        row_valid: BoolTensor [batch, max_rows], False where ``rows`` is filled up.
        key_valid: BoolTensor [batch, keys], False on padding.

    Returns:
        FloatTensor [batch, keys]; zeros for a batch row without a valid instruction row.
    """
    batch, heads, queries, head_dim = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    groups = heads // key_heads
    key_transposed = key.float().transpose(-1, -2)
    columns = torch.arange(keys, device=query.device)
    best = torch.zeros(batch, keys, device=query.device)
    for start in range(0, rows.shape[1], ROWS_AT_A_TIME):
        chunk = rows[:, start : start + ROWS_AT_A_TIME]
        valid = row_valid[:, start : start + ROWS_AT_A_TIME]
        picked = query.gather(2, chunk[:, None, :, None].expand(-1, heads, -1, head_dim)).float()
        # [batch, key_heads, groups * rows, head_dim]: grouped queries share their keys without repeating them
        logits = picked.reshape(batch, key_heads, groups * chunk.shape[1], head_dim) @ key_transposed * scaling
        logits = logits.reshape(batch, heads, chunk.shape[1], keys)
        visible = key_valid[:, None] & (columns <= (chunk + keys - queries)[..., None])
        logits = logits.masked_fill(~visible[:, None], torch.finfo(logits.dtype).min)
        attention = torch.softmax(logits, dim=-1).mean(dim=1)
        best = torch.maximum(best, attention.masked_fill(~valid[..., None], 0).amax(dim=1))
    return best
