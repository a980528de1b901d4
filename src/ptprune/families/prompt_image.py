"""An image of a prompt: its encoded features joined with its token positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ptprune.errors import Refused
from ptprune.families.encoded import EncodedImage
from ptprune.layout import ImageLayout, PartlyEncoded
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.upload import upload


@dataclass(frozen=True, eq=False)
class PromptImage:
    """One image of a prompt.

    Attributes:
        layout: of its remaining prunable tokens, in the regions that were encoded.
        encoded: the image as the vision side encoded it.
        placeholders: LongTensor [num_tokens], the index of each of those tokens among the image's placeholders, which
            include structural ones (newlines).
        whole: the layout of all of its prunable tokens.
        among: LongTensor, the index of each token that was encoded among all prunable ones; None: all were.
        shown: which of the image's regions those of ``layout`` are; None: all.
    """

    layout: ImageLayout
    encoded: EncodedImage
    placeholders: Tensor | None
    whole: ImageLayout
    among: Tensor | None = None
    shown: np.ndarray | None = None

    @classmethod
    def at(cls, sample: int, columns: Tensor, encoded: EncodedImage) -> PromptImage:
        """An image of batch row ``sample`` with its placeholders, including structural ones, in ``columns``.

        Raises:
            Refused: if its regions have another number of tokens.
        """
        region_of, prunable, made = encoded.region_of, None, encoded.encoded
        kept: np.ndarray | None = None
        if encoded.num_placeholders != sum(region.num_tokens for region in encoded.regions):
            [kept] = (region_of >= 0).nonzero()
            region_of, prunable = region_of[kept], upload(kept, columns.device)
            columns = columns[prunable]
            made = None if made is None else made[kept]
        partly = None
        if made is not None:
            partly = PartlyEncoded(made, tuple(encoded.scores), tuple(encoded.borrowed))
        layout = ImageLayout(
            sample,
            columns,
            encoded.regions,
            upload(region_of, columns.device),
            encoded.places,
            region_of,
            encoded=partly,
        )
        if layout.num_tokens != layout.num_unpruned:
            raise Refused(f"{layout.num_unpruned} visual tokens of an image's regions, {len(columns)} found")
        image = cls(layout, encoded, prunable, layout)
        return image if partly is None or partly.tokens.all() else image._without(partly, kept)

    def _without(self, partly: PartlyEncoded, placeholders: np.ndarray | None) -> PromptImage:
        """The image without what was not encoded: to methods, that is as if it had never been there.

        Args:
            placeholders: of all prunable tokens; None where they are all of the image's placeholders.
        """
        layout, [made] = self.layout, partly.tokens.nonzero()
        assert layout.host is not None
        shown, region_of = np.unique(layout.host[made], return_inverse=True)
        among = upload(made, layout.tokens.device)
        places = layout.places
        fewer = ImageLayout(
            layout.sample,
            layout.tokens[among],
            tuple(layout.regions[region] for region in shown),
            upload(region_of, layout.tokens.device),
            lambda: [places()[region] for region in shown],
            region_of,
            unpruned=layout.num_tokens,
            cells=layout.cells_on_host()[made],
        )
        tokens = among if placeholders is None else upload(placeholders[made], among.device)
        return PromptImage(fewer, self.encoded, tokens, layout, among, shown)

    def after(self, kept: Tensor, columns: Tensor) -> PromptImage:
        """The image with only the tokens ``kept``, which are in ``columns`` now."""
        layout = replace(self.layout, tokens=columns, region_of=self.layout.region_of[kept], host=None, cells=None)
        return replace(self, layout=layout, placeholders=kept if self.placeholders is None else self.placeholders[kept])

    def moved(self, columns: Tensor) -> PromptImage:
        """The image with the same tokens, which are in ``columns`` now."""
        return replace(self, layout=replace(self.layout, tokens=columns))

    def in_whole(self, selection: Selection) -> Selection:
        """A choice among the tokens of ``layout``, before any was dropped, as one among those of ``whole``.

        Scores of tokens that were not encoded are 0, and saliencies None.
        """
        if self.among is None or self.shown is None:
            return selection
        saliency: list[float | None] | None = None
        if selection.saliency is not None:
            saliency = [None] * len(self.whole.regions)
            for region, value in zip(self.shown, selection.saliency, strict=True):
                saliency[region] = value
        scores = {
            name: values.new_zeros(self.whole.num_tokens).index_copy_(0, self.among.to(values.device), values.detach())
            for name, values in selection.scores.items()
        }
        return Selection(self.among[selection.kept], saliency, scores)

    def evidence(
        self, language: Mapping[str, Tensor], stage: int = 0, last: bool = True, earlier: Selection | None = None
    ) -> ImageEvidence:
        """The image's evidence, on the device of its layout.

        Args:
            language: evidence from the language model, by name in ``ImageEvidence``.
            stage, last, earlier: as there.
        """
        device, encoded = self.layout.tokens.device, self.encoded
        features, whole = encoded.features, encoded.whole
        if features is not None:
            if self.shown is not None:
                features = features[upload(self.shown, features.device)]
            features = features.to(device)
            whole = features[self.layout.thumbnail] if self.layout.thumbnail is not None else whole
        tokens = {name: values.to(device) for name, values in encoded.tokens.items()}
        if self.placeholders is not None:
            tokens = {name: values[self.placeholders] for name, values in tokens.items()}
        return ImageEvidence(
            self.layout,
            stage,
            last,
            earlier,
            region_features=features,
            image_feature=None if whole is None else whole.to(device),
            pixels=encoded.preview,
            **tokens,
            **language,
        )
