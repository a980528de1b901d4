"""An image of a prompt: its encoded features joined with its token positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ptprune.errors import Refused
from ptprune.families.encoded import EncodedImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.upload import upload


@dataclass(frozen=True, eq=False)
class PromptImage:
    """One image of a prompt.

    Attributes:
        layout: of its remaining prunable tokens.
        encoded: the image as the vision side encoded it.
        placeholders: LongTensor [num_tokens], the index of each of those tokens among the image's placeholders, which
            include structural ones (newlines).
    """

    layout: ImageLayout
    encoded: EncodedImage
    placeholders: Tensor | None

    @classmethod
    def at(cls, sample: int, columns: Tensor, encoded: EncodedImage) -> PromptImage:
        """An image of batch row ``sample`` with its placeholders, including structural ones, in ``columns``.

        Raises:
            Refused: if its regions have another number of tokens.
        """
        region_of, prunable = encoded.region_of, None
        if encoded.num_placeholders != sum(region.num_tokens for region in encoded.regions):
            [kept] = (region_of >= 0).nonzero()
            region_of, prunable = region_of[kept], upload(kept, columns.device)
            columns = columns[prunable]
        layout = ImageLayout(
            sample, columns, encoded.regions, upload(region_of, columns.device), encoded.places, region_of
        )
        if layout.num_tokens != layout.num_unpruned:
            raise Refused(f"{layout.num_unpruned} visual tokens of an image's regions, {len(columns)} found")
        return cls(layout, encoded, prunable)

    def after(self, kept: Tensor, columns: Tensor) -> PromptImage:
        """The image with only the tokens ``kept``, which are in ``columns`` now."""
        layout = replace(self.layout, tokens=columns, region_of=self.layout.region_of[kept], host=None)
        return PromptImage(layout, self.encoded, kept if self.placeholders is None else self.placeholders[kept])

    def evidence(self, stage: int = 0, **language: Tensor) -> ImageEvidence:
        """The image's evidence, on the device of its layout.

        Args:
            language: evidence from the language model, by name in ``ImageEvidence``.
        """
        device, encoded = self.layout.tokens.device, self.encoded
        features, whole = encoded.features, encoded.whole
        if features is not None:
            features = features.to(device)
            whole = features[self.layout.thumbnail] if self.layout.thumbnail is not None else whole
        tokens = {name: values.to(device) for name, values in encoded.tokens.items()}
        if self.placeholders is not None:
            tokens = {name: values[self.placeholders] for name, values in tokens.items()}
        return ImageEvidence(
            self.layout,
            stage,
            region_features=features,
            image_feature=None if whole is None else whole.to(device),
            pixels=encoded.preview,
            **tokens,
            **language,
        )
