"""What a vision encoder's attention module tells of its patches."""

from __future__ import annotations

import torch
from torch import Tensor

from ptprune.attach.rows import Shown
from ptprune.scores.token import cls_row, received_attention


def patch_attention(shown: Shown, has_cls: bool) -> Tensor:
    """FloatTensor [patches of all tiles]: attention from [CLS], or received from all patches of the tile."""
    if has_cls:
        return cls_row(shown.query, shown.key, shown.scaling).flatten()
    if shown.lengths is not None:  # flash attention gets pictures of different sizes as one sequence
        parts = zip(shown.query.split(shown.lengths, dim=2), shown.key.split(shown.lengths, dim=2), strict=True)
        return torch.cat([received_attention(q, k, shown.scaling).flatten() for q, k in parts])
    return received_attention(shown.query, shown.key, shown.scaling, _valid(shown.mask)).flatten()


def _valid(mask: Tensor | None) -> Tensor | None:
    """BoolTensor [tiles, patches] of a mask that hides padded patches from all others."""
    if mask is None or mask.ndim == 2:
        return None if mask is None else mask.bool()
    row = mask[:, 0, 0]
    return row if row.dtype == torch.bool else row == 0
