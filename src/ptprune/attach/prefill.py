"""One pruned prefill: from placeholders and raw attention rows to the selections and the cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

from ptprune.attach.cut import Cut
from ptprune.families.base import EncodedImages, Family
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(eq=False)
class Prefill:
    """The state of one forward pass that brings images.

    Attributes:
        placeholders: BoolTensor [batch, length], the visual tokens of the prompt.
        key_valid: BoolTensor [batch, past + length], the real keys, those of the cache first.
        prompt_length: columns that are prompt; drafts of assisted decoding may follow.
        encoded: the vision side's evidence; None until the images are encoded.
        instruction: FloatTensor [batch, past + length], attention received from the instruction.
        layouts: the images of each prompt's first copy.
        copies: batch rows of each prompt; beams and several returns repeat it.
        cut: None until selected, and where every token stays.
    """

    placeholders: Tensor
    key_valid: Tensor
    prompt_length: int
    encoded: EncodedImages | None = None
    instruction: Tensor | None = None
    layouts: list[ImageLayout] = field(default_factory=list)
    copies: int = 1
    selections: list[Selection] | None = None
    cut: Cut | None = None

    @property
    def length(self) -> int:
        return self.placeholders.shape[1]

    @property
    def past(self) -> int:
        return self.key_valid.shape[1] - self.length

    @property
    def valid(self) -> Tensor:
        """BoolTensor [batch, length], the new columns that are not padding."""
        return self.key_valid[:, self.past :]

    def instruction_rows(self) -> list[Tensor]:
        """The instruction's columns, a LongTensor a batch row: the text after the last visual token, else all text
        [ours]; none in a row without images or one that repeats the row before."""
        columns = torch.arange(self.length, device=self.placeholders.device)
        text = self.valid & ~self.placeholders & (columns < self.prompt_length)
        last = torch.where(self.placeholders, columns, -1).amax(dim=1, keepdim=True)
        after = text & (columns > last)
        chosen = torch.where(after.any(dim=1, keepdim=True), after, text) & (last >= 0)
        chosen &= (torch.arange(len(chosen), device=chosen.device) % self.copies == 0)[:, None]
        return [row.nonzero()[:, 0] for row in chosen]

    def find_images(self, family: type[Family]) -> None:
        """Fill ``layouts`` and ``copies`` from the runs of visual tokens, once the images are encoded.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.

        Raises:
            ValueError: where the runs do not fit the encoded tiles.
        """
        assert self.encoded is not None
        runs: list[tuple[int, range]] = []
        for sample, row in enumerate(self.placeholders.tolist()):
            for visual, group in groupby(range(len(row)), key=row.__getitem__):
                if visual:
                    columns = list(group)
                    runs.append((sample, range(columns[0], columns[-1] + 1)))
        images = [(sample, run, family.regions(self.encoded, len(run))) for sample, run in runs]
        wanted, encoded = sum(len(regions) for _, _, regions in images), len(self.encoded.preview)
        if not wanted or wanted % encoded or len(self.placeholders) % (wanted // encoded):
            raise ValueError(f"the prompt has visual tokens for {wanted} tiles, but {encoded} tiles were encoded")
        self.copies = wanted // encoded
        images = [image for image in images if image[0] % self.copies == 0]
        ends = list(accumulate(len(regions) for _, _, regions in images))
        device = self.placeholders.device
        self.layouts = [
            ImageLayout(
                sample, torch.arange(run.start, run.stop, device=device), regions, range(end - len(regions), end)
            )
            for (sample, run, regions), end in zip(images, ends, strict=True)
        ]

    def select(self, choose: Callable[[ImageEvidence], Selection]) -> list[Selection]:
        """Choose every image's tokens."""
        self.selections = [choose(self.evidence(image)) for image in self.layouts]
        return self.selections

    def evidence(self, image: ImageLayout) -> ImageEvidence:
        """What was computed for one image."""
        assert self.encoded is not None
        device = image.tokens.device
        rows = slice(image.encoded.start, image.encoded.stop)
        features, attention = self.encoded.cls_features, self.encoded.cls_attention
        return ImageEvidence(
            image,
            cls_features=None if features is None else features[rows].to(device),
            cls_attention=None if attention is None else attention[rows].flatten().to(device),
            instruction_attention=None
            if self.instruction is None
            else self.instruction[image.sample, self.past + image.tokens],
        )

    def make_cut(self) -> None:
        """From the selections to the cut; none where every token stays."""
        assert self.selections is not None
        dropped = self.placeholders.clone()
        for image, selection in zip(self.layouts, self.selections, strict=True):
            for row in range(image.sample, image.sample + self.copies):
                dropped[row, image.tokens[selection.kept]] = False
        dropped &= self.valid
        if bool(dropped.any()):
            self.cut = Cut.of(self.valid, dropped, self.key_valid[:, : self.past])
