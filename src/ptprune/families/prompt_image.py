"""An image found in a prompt: from where it is and what was encoded of it to what a method may look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ptprune.errors import Refused
from ptprune.families.encoded import EncodedImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence


@dataclass(frozen=True, eq=False)
class PromptImage:
    """An image of a prompt.

    Attributes:
        layout: of its prunable tokens that are left.
        image: what was encoded.
        rows: LongTensor [num_tokens], which of the image's placeholders those are.
    """

    layout: ImageLayout
    image: EncodedImage
    rows: Tensor

    @classmethod
    def at(cls, sample: int, columns: Tensor, image: EncodedImage) -> PromptImage:
        """An image of batch row ``sample`` whose placeholders stand in ``columns``, structural ones included.

        Raises:
            Refused: where its regions do not have as many tokens.
        """
        region_of = image.region_of.to(columns.device)
        rows = (region_of >= 0).nonzero()[:, 0]
        layout = ImageLayout(sample, columns[rows], image.regions, region_of[rows], image.places)
        if layout.num_tokens != layout.num_unpruned:
            raise Refused(f"{layout.num_unpruned} visual tokens of an image's regions, {len(rows)} found")
        return cls(layout, image, rows)

    def after(self, kept: Tensor, columns: Tensor) -> PromptImage:
        """With the tokens ``kept`` alone, which stand in ``columns`` now."""
        layout = replace(self.layout, tokens=columns, region_of=self.layout.region_of[kept])
        return PromptImage(layout, self.image, self.rows[kept])

    def evidence(self, stage: int = 0, **language: Tensor) -> ImageEvidence:
        """What was computed for the image, on the device of its layout.

        Args:
            language: what the language model's side adds, by name in ``ImageEvidence``.
        """
        device, image = self.rows.device, self.image
        features, whole = image.features, image.whole
        if features is not None:
            features = features.to(device)
            whole = features[self.layout.thumbnail] if self.layout.thumbnail is not None else whole
        tokens = {name: values.to(device)[self.rows] for name, values in image.tokens.items()}
        tokens |= {name: tokens[name][:, 0] for name in tokens.keys() & {"cls_attention", "received_attention"}}
        return ImageEvidence(
            self.layout,
            stage,
            region_features=features,
            image_feature=None if whole is None else whole.to(device),
            pixels=image.preview,
            **tokens,
            **language,
        )
