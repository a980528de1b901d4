"""Instruction-guided level: which tokens this question needs (PTP, top-down)."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ptprune.scores.evidence import ImageEvidence
from ptprune.scores.registry import ScoreRegistry
from ptprune.upload import upload

INSTRUCTION_SCORES = ScoreRegistry("instruction", reserved=("none",))

# Attention rows held at a time. Memory is at most batch x heads x 64 x sequence, however long the question is.
ROWS_AT_A_TIME = 64
REACH = (1, 3)
"""Rows and columns of tokens as far as "neighbourhood" shares a score."""
FADE = (0.4, 0.9)
"""What a row and a column leave of it."""


@INSTRUCTION_SCORES.register("attention", needs=("instruction_attention",))
def attention(image: ImageEvidence) -> Tensor:
    """Strongest attention that any instruction token pays to the visual token at one LLM layer (the paper's)."""
    return image.require("instruction_attention")


@INSTRUCTION_SCORES.register("neighbourhood", needs=("instruction_attention",))
def neighbourhood(image: ImageEvidence) -> Tensor:
    """The attention, shared with the tokens around: what a question asks for stands beside the word that it names.

    [ours] ``c'_j = max_i c_i * FADE[0]^rows * FADE[1]^columns`` over the tokens i of j's tile that are up to ``REACH``
    rows and columns away. In early layers the question looks at what it names ("what is the value of K?": at K), and
    only later at the answer. Print runs in lines, so that the reach is longer to the sides.
    """
    attention = image.require("instruction_attention").float()
    shape, cells = image.layout.on_canvas
    canvas = attention
    if cells is not None:
        canvas = attention.new_zeros(prod(shape)).index_copy_(0, cells, attention)
    size = tuple(2 * reach + 1 for reach in REACH)
    around = F.unfold(canvas.view(shape[0], 1, *shape[1:]), size, padding=REACH)
    shared = (around * _fading(attention.device)).amax(dim=1).flatten()
    return shared if cells is None else shared[cells]


@lru_cache(maxsize=16)
def _fading(device: torch.device) -> Tensor:
    """What is left of a score at each place of the window, row by row: FloatTensor [places, 1]."""
    rows, columns = (fade ** np.abs(np.arange(-reach, reach + 1)) for fade, reach in zip(FADE, REACH, strict=True))
    return torch.from_numpy(np.outer(rows, columns).reshape(-1, 1)).float().to(device)


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
    key_columns: Tensor | None,
    key_valid: Tensor | None,
    scaling: float,
    window: int | None = None,
) -> Iterator[Tensor]:
    """The instruction tokens' rows of the attention map, mean over heads: ``softmax(q_i K^T * scaling)``.

    Causal and padding masks and the layer's sliding window apply. Other rows are not computed.

    Args:
        query: [prompts, heads, rows, head_dim], of the instruction tokens, after rotary embedding.
        key: [prompts, key_value_heads, keys, head_dim].
        query_columns: LongTensor [prompts, rows], the position of each in the unpruned sequence.
        key_columns: LongTensor [prompts, keys], the same of the keys; None: 0, 1, 2, ...
        key_valid: BoolTensor [prompts, keys], False on padding; None: all are real.
        window: how many tokens the layer sees, counting back from and including the row's own; None: all.

    Yields:
        FloatTensor [prompts, up to ROWS_AT_A_TIME, keys].
    """
    prompts, heads, rows, head_dim = query.shape
    key_heads, keys = key.shape[1:3]
    key_transposed = key.float().transpose(-1, -2)
    if key_columns is None:
        key_columns = torch.arange(keys, device=key.device)[None]
    for start in range(0, rows, ROWS_AT_A_TIME):
        chunk, columns = query[:, :, start : start + ROWS_AT_A_TIME], query_columns[:, start : start + ROWS_AT_A_TIME]
        # [prompts, key_heads, groups * rows, head_dim]: grouped queries share their keys without repeating them
        picked = (chunk.float() * scaling).reshape(prompts, key_heads, -1, head_dim)
        logits = (picked @ key_transposed).view(prompts, heads, -1, keys)
        hidden = key_columns[:, None] > columns[..., None]
        if key_valid is not None:
            hidden |= ~key_valid[:, None]
        if window is not None:
            hidden |= key_columns[:, None] <= columns[..., None] - window
        logits.masked_fill_(hidden[:, None], torch.finfo(logits.dtype).min)
        yield torch.softmax(logits, dim=-1).mean(dim=1)


@torch.no_grad()
def summarise(
    blocks: Iterable[Tensor], wanted: Container[str], lengths: Sequence[int], keys: int, device: torch.device | str
) -> dict[str, Tensor]:
    """Summarise ``attention_rows`` for the methods: ``instruction_attention`` is ``c_j = max_i A[i, j]``.

    Args:
        lengths: of each prompt's instruction; longer ones pad the rows of shorter ones.

    Returns:
        Name in ``ImageEvidence`` -> FloatTensor [prompts, ..., keys]; zeros if there is no instruction.
    """
    best: Tensor | None = None
    last = torch.zeros(len(lengths), keys, device=device) if "last_attention" in wanted else None
    whole, start = [torch.zeros(len(lengths), 0, keys, device=device)] if "instruction_map" in wanted else [], 0
    for block in blocks:
        stop = start + block.shape[1]
        if min(lengths) < stop:  # attention of padding counts for nothing
            real = np.arange(start, stop) < np.array(lengths)[:, None]
            block = block.masked_fill(~upload(real, block.device)[..., None], 0.0)
        if "instruction_attention" in wanted:
            best = block.amax(dim=1) if best is None else torch.maximum(best, block.amax(dim=1))
        if last is not None:
            for prompt, length in enumerate(lengths):
                if start < length <= stop:
                    last[prompt] = block[prompt, length - 1 - start]
        if "instruction_map" in wanted:
            whole.append(block)
        start = stop
    found = {"last_attention": last} if last is not None else {}
    if "instruction_attention" in wanted:
        found["instruction_attention"] = torch.zeros(len(lengths), keys, device=device) if best is None else best
    if whole:
        found["instruction_map"] = torch.cat(whole, dim=1)
    return found
