"""Instruction-guided level: which tokens this question needs (PTP, top-down)."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry

INSTRUCTION_SCORES = ScoreRegistry("instruction", reserved=("none",))

# Attention rows held at a time. Memory is at most batch x heads x 64 x sequence, however long the question is.
ROWS_AT_A_TIME = 64


@INSTRUCTION_SCORES.register("attention", needs=("instruction_attention",))
def attention(image: ImageEvidence) -> Tensor:
    """Strongest attention that any instruction token pays to the visual token at one LLM layer (the paper's)."""
    return image.require("instruction_attention")


@INSTRUCTION_SCORES.register("embedding", needs=("embeddings", "instruction_embeddings"))
def embedding(image: ImageEvidence) -> Tensor:
    """Strongest cosine of the visual token with any instruction token's embedding: needs no attention row of the LLM.

    Choose it with ``layer=0`` if the language model's first layer cannot be read. It is far weaker than attention.
    """
    visual = F.normalize(image.require("embeddings").float(), dim=-1)
    text = F.normalize(image.require("instruction_embeddings").float(), dim=-1)
    if not len(text):
        return torch.zeros(len(visual), device=visual.device)
    return (visual @ text.T).amax(dim=1)


def attention_rows(
    query: Tensor,
    key: Tensor,
    query_columns: Tensor,
    key_columns: Tensor,
    key_valid: Tensor,
    scaling: float,
    window: int | None = None,
) -> Iterator[Tensor]:
    """The instruction tokens' rows of one prompt's attention map, mean over heads: ``softmax(q_i K^T * scaling)``.

    Causal and padding masks and the layer's sliding window apply. Other rows are not computed.

    Args:
        query: [heads, rows, head_dim], of the instruction tokens, after rotary embedding.
        key: [key_value_heads, keys, head_dim].
        query_columns, key_columns: LongTensor [rows], [keys], the position of each in the unpruned sequence.
        key_valid: BoolTensor [keys], False on padding.
        window: how many tokens the layer sees, counting back from and including the row's own; None: all.

    Yields:
        FloatTensor [up to ROWS_AT_A_TIME, keys].
    """
    if not len(query_columns):
        return
    key_heads, keys, head_dim = key.shape
    key_transposed = key.float().transpose(-1, -2)
    chunks = zip(query.split(ROWS_AT_A_TIME, dim=1), query_columns.split(ROWS_AT_A_TIME), strict=True)
    for chunk, columns in chunks:
        # [key_heads, groups * rows, head_dim]: grouped queries share their keys without repeating them
        picked = (chunk.float() * scaling).reshape(key_heads, -1, head_dim)
        logits = (picked @ key_transposed).reshape(len(chunk), len(columns), keys)
        distance = columns[:, None] - key_columns
        hidden = ~key_valid | (distance < 0)
        if window is not None:
            hidden |= distance >= window
        logits.masked_fill_(hidden, torch.finfo(logits.dtype).min)
        yield torch.softmax(logits, dim=-1).mean(dim=0)


@torch.no_grad()
def summarise(
    blocks: Iterable[Tensor], wanted: Container[str], keys: int, device: torch.device | str
) -> dict[str, Tensor]:
    """Summarise ``attention_rows`` for the methods: ``instruction_attention`` is ``c_j = max_i A[i, j]``.

    Returns:
        Name in ``ImageEvidence`` -> FloatTensor [..., keys]; zeros if there is no instruction.
    """
    best = last = torch.zeros(keys, device=device)
    whole = [torch.zeros(0, keys, device=device)]
    for block in blocks:
        best, last = torch.maximum(best, block.amax(dim=0)), block[-1]
        if "instruction_map" in wanted:
            whole.append(block)
    summaries = {"instruction_attention": best, "last_attention": last, "instruction_map": torch.cat(whole)}
    return {name: values for name, values in summaries.items() if name in wanted}
