"""Write down what a prefill did."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ptprune.layout import ImageLayout
from ptprune.report import ImageReport, PruningReport, RegionReport
from ptprune.selection import Selection


def write_report(layouts: Sequence[ImageLayout], selections: Sequence[Selection], valid: Tensor) -> PruningReport:
    """The report of a prefill.

    Args:
        valid: BoolTensor [batch, prompt length], the columns that are not padding.
    """
    kept_mask = valid.clone()
    images = []
    for layout, selection in zip(layouts, selections, strict=True):
        kept_mask[layout.sample, layout.tokens] = False
        kept_mask[layout.sample, layout.tokens[selection.kept]] = True
        images.append(_write_image(layout, selection))
    before, after = valid.sum(dim=1).tolist(), kept_mask.sum(dim=1).tolist()
    return PruningReport(images, kept_mask.cpu(), list(zip(before, after, strict=True)))


def _write_image(layout: ImageLayout, selection: Selection) -> ImageReport:
    kept, region_of = selection.kept.cpu(), layout.region_of.cpu()
    kept_in = region_of[kept].bincount(minlength=len(layout.regions)).tolist()
    saliency = selection.saliency or [None] * len(layout.regions)
    regions = []
    for number, (region, place) in enumerate(zip(layout.regions, layout.places(), strict=True)):
        indices = (region_of == number).nonzero()[:, 0].tolist()
        regions.append(
            RegionReport(
                row=place.row,
                column=place.column,
                is_thumbnail=region.is_thumbnail,
                start=indices[0],
                stop=indices[-1] + 1,
                indices=indices,
                grid=region.grid,
                box=place.box,
                budget=kept_in[number],
                saliency=saliency[number],
            )
        )
    scores = {name: score.float().cpu() for name, score in selection.scores.items()}
    return ImageReport(layout.sample, layout.num_tokens, kept, regions, scores)
