"""Attention rows against full attention maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptprune.families.grid import infer_columns
from ptprune.families.tiled import pool_to
from ptprune.scores.attention import cls_row, received_attention
from ptprune.scores.evidence import INSTRUCTION_ROWS
from ptprune.scores.instruction import attention_rows, summarise


def test_cls_row_is_the_first_row_of_the_full_map():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 19, 3, 17, 8, generator=generator)  # more tiles than are done at a time
    full = torch.softmax(query @ key.transpose(-1, -2) * 0.3, -1).mean(1)
    torch.testing.assert_close(cls_row(query, key, 0.3), full[:, 0, 1:])


@pytest.mark.parametrize("at_a_time", [1, 100, 2**24])
@pytest.mark.parametrize("padded", [False, True])
def test_received_attention_is_the_mean_over_rows_of_the_full_map(padded, at_a_time, monkeypatch):
    monkeypatch.setattr("ptprune.scores.attention.WEIGHTS_AT_A_TIME", at_a_time)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 2, 17, 8, generator=generator)
    valid = torch.rand(3, 17, generator=generator) > 0.3 if padded else torch.ones(3, 17, dtype=torch.bool)
    logits = query @ key.transpose(-1, -2) * 0.3
    full = torch.softmax(logits.masked_fill(~valid[:, None, None], -torch.inf), -1).mean(1)
    expected = torch.stack([tile[real].mean(0) for tile, real in zip(full, valid, strict=True)])
    torch.testing.assert_close(received_attention(query, key, 0.3, valid if padded else None), expected)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 9),
    st.integers(1, 150),
    st.sampled_from([None, 1, 5, 40]),
    st.randoms(),
)
def test_instruction_rows_are_the_maximum_over_rows_of_the_full_map(key_heads, groups, past, queries, window, random):
    generator = torch.Generator().manual_seed(random.randint(0, 10**6))
    query = torch.randn(2, key_heads * groups, queries, 4, generator=generator)
    key = torch.randn(2, key_heads, past + queries, 4, generator=generator)
    key_valid = torch.rand(2, past + queries, generator=generator) > 0.2
    key_valid[:, past:] |= torch.eye(queries, dtype=torch.bool).any(0)  # a query may look at itself
    chosen = [sorted(random.sample(range(queries), random.randint(0, queries))) for _ in range(2)]
    # the first keys were pruned in an earlier turn: gaps stand between them
    columns = torch.tensor(sorted(random.sample(range(3 * past), past)) + [3 * past + i for i in range(queries)])
    distance = columns[past:, None] - columns
    near = distance < (10**9 if window is None else window)
    visible = ((distance >= 0) & near & key_valid[:, None])[:, None]
    logits = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * 0.5
    full = torch.softmax(logits.masked_fill(~visible, -torch.inf), -1).mean(1)
    expected = [full[b, row].amax(0) if row else torch.zeros(past + queries) for b, row in enumerate(chosen)]
    for b, row in enumerate(chosen):
        chosen_rows = torch.tensor(row, dtype=torch.long)
        where = columns[past + chosen_rows]
        rows = query[b][None, :, chosen_rows], key[b][None], where[None], columns[None], key_valid[b][None]
        found = summarise(attention_rows(*rows, 0.5, window), INSTRUCTION_ROWS, [len(row)], past + queries, "cpu")
        scores = {name: values[0] for name, values in found.items()}
        torch.testing.assert_close(scores["instruction_attention"], expected[b], atol=1e-6, rtol=1e-5)
        if row:
            torch.testing.assert_close(scores["instruction_map"], full[b, row], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(scores["last_attention"], full[b, row[-1]], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_patches_are_pooled_as_the_model_packs_them(block):
    """Each patch gets its index as its feature, and the model's own pixel shuffle says which patches make a token."""
    from transformers import InternVLModel

    side = 8
    patches = torch.arange(side * side, dtype=torch.float32).reshape(1, side, side, 1)
    packed = InternVLModel.pixel_shuffle(None, patches.expand(-1, -1, -1, 16).contiguous(), scale_factor=1 / block)
    members = packed.reshape(1, (side // block) ** 2, -1)
    values = torch.rand(1, side * side)
    expected = [values[0, token.long().unique()].mean() for token in members[0]]
    assert all(len(token.long().unique()) == block * block for token in members[0])
    torch.testing.assert_close(pool_to(side // block, values)[0], torch.stack(expected))
    torch.testing.assert_close(pool_to(side // block, values[..., None])[0, :, 0], torch.stack(expected))


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (3, 4), (4, 3), (2, 6), (6, 2), (1, 12), (3, 3), (1, 7)])
def test_the_grid_is_read_from_the_pixels(rows, columns):
    whole = torch.rand(3, rows * 4, columns * 4, generator=torch.Generator().manual_seed(rows))
    whole = torch.nn.functional.interpolate(whole[None], scale_factor=3, mode="bilinear")[0]  # smooth, as pictures are
    tiles = whole.reshape(3, rows, 12, columns, 12).permute(1, 3, 0, 2, 4).reshape(-1, 3, 12, 12)
    thumbnail = torch.nn.functional.interpolate(whole[None], size=(12, 12), mode="bicubic", antialias=True)[0]
    assert infer_columns(tiles.numpy(), thumbnail.numpy()) == columns


def test_a_blank_picture_has_the_widest_grid():
    assert infer_columns(np.ones((12, 3, 12, 12)), np.ones((3, 12, 12))) == 12
