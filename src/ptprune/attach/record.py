"""Write down what a prefill did."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ptprune.families.base import Family
from ptprune.layout import ImageLayout
from ptprune.report import ImageReport, PruningReport, RegionReport
from ptprune.selection import Selection


def write_report(
    layouts: Sequence[ImageLayout],
    selections: Sequence[Selection],
    valid: Tensor,
    previews: Tensor,
    family: type[Family],
) -> PruningReport:
    """The report of a prefill.

    Args:
        valid: BoolTensor [batch, prompt length], the columns that are not padding.
        previews: the encoder's tiny pictures, see ``EncodedImages``.
    """
    kept_mask = valid.clone()
    images = []
    for layout, selection in zip(layouts, selections, strict=True):
        kept_mask[layout.sample, layout.tokens] = False
        kept_mask[layout.sample, layout.tokens[selection.kept]] = True
        images.append(_write_image(layout, selection, previews[layout.encoded.start : layout.encoded.stop], family))
    before, after = valid.sum(dim=1).tolist(), kept_mask.sum(dim=1).tolist()
    return PruningReport(images, kept_mask.cpu(), list(zip(before, after, strict=True)))


def _write_image(layout: ImageLayout, selection: Selection, previews: Tensor, family: type[Family]) -> ImageReport:
    kept = selection.kept.cpu()
    places = family.places(previews, layout.regions)
    saliency = selection.saliency or [None] * len(layout.regions)
    regions = [
        RegionReport(
            row=row,
            column=column,
            is_thumbnail=region.is_thumbnail,
            start=region.start,
            stop=region.stop,
            budget=int(((kept >= region.start) & (kept < region.stop)).sum()),
            saliency=value,
        )
        for region, (row, column), value in zip(layout.regions, places, saliency, strict=True)
    ]
    scores = {name: score.float().cpu() for name, score in selection.scores.items()}
    return ImageReport(layout.sample, layout.num_tokens, kept, regions, scores)
