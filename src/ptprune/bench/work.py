"""The work up to the first token, counted: what methods that drop in stages are compared by, beside the kept share."""

from __future__ import annotations

from collections.abc import Sequence

from ptprune.cost import head_macs, patch_rows_of, prefill_macs, projector_macs, select_macs, vision_macs
from ptprune.pruner import TokenPruner
from ptprune.scores.evidence import INSTRUCTION_ROWS
from ptprune.shapes import ModelShape


def first_token_macs(shape: ModelShape, visual: int, text: int, pruner: TokenPruner | None = None) -> int:
    """Multiply-accumulates up to the first token of a picture and a question, counted as ``ptprune.cost`` does.

    Every cut of a method that drops in stages counts, and so do the rows of attention that each of them reads. All text
    tokens count as the instruction.

    Args:
        visual: tokens of the picture as it is shown.
        text: all other tokens of the prompt.
        pruner: None for the unpruned model. A method that chooses the number by the scores counts with its ratio.
    """
    encoded = visual // shape.tile_tokens
    macs = encoded * (vision_macs(shape.vision) + projector_macs(shape)) + head_macs(shape.text)
    tokens = visual + text
    if pruner is None or pruner.keeps_all(visual):
        return macs + prefill_macs(shape.text, tokens)
    needs = pruner.needs
    stages = [(layer, left + text) for layer, left in pruner.schedule(shape.text.layers, visual)]
    rows = 1 if needs & INSTRUCTION_ROWS == {"last_attention"} else text if needs & INSTRUCTION_ROWS else 0
    macs += select_macs(shape, encoded, tokens, stages, rows, patch_rows_of(shape.vision, needs))
    return macs + prefill_macs(shape.text, tokens, stages)


def share_of_unpruned(
    shape: ModelShape, prompts: Sequence[tuple[int, int, int]], pruner: TokenPruner | None = None
) -> float:
    """The work of many prompts as a share of the unpruned model's on them.

    Args:
        prompts: visual tokens of each picture as it is, as it is shown, and the text tokens.
    """
    whole = sum(first_token_macs(shape, visual, text) for visual, _, text in prompts)
    return sum(first_token_macs(shape, shown, text, pruner) for _, shown, text in prompts) / whole
