"""One pruned prefill: from placeholders and raw attention rows to the selections and the cut."""

from __future__ import annotations

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
        cut: None until selected, and where every token stays.
    """

    placeholders: Tensor
    key_valid: Tensor
    prompt_length: int
    encoded: EncodedImages | None = None
    instruction: Tensor | None = None
    layouts: list[ImageLayout] = field(default_factory=list)
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
        [ours]; none in a row without images."""
        columns = torch.arange(self.length, device=self.placeholders.device)
        text = self.valid & ~self.placeholders & (columns < self.prompt_length)
        last = torch.where(self.placeholders, columns, -1).amax(dim=1, keepdim=True)
        after = text & (columns > last)
        chosen = torch.where(after.any(dim=1, keepdim=True), after, text) & (last >= 0)
        return [row.nonzero()[:, 0] for row in chosen]

    def find_images(self, family: type[Family]) -> None:
        """Fill ``layouts`` from the runs of visual tokens, once the images are encoded.

        Raises:
            ValueError: where the runs do not fit the encoded tiles.
        """
        assert self.encoded is not None
        runs: list[tuple[int, range]] = []
        for sample, row in enumerate(self.placeholders.tolist()):
            for visual, group in groupby(enumerate(row), key=lambda column: column[1]):
                if visual:
                    found = [column for column, _ in group]
                    runs.append((sample, range(found[0], found[-1] + 1)))
        regions = [family.regions(self.encoded, len(run)) for _, run in runs]
        starts = self._encoded_starts([sample for sample, _ in runs], [len(parts) for parts in regions])
        device = self.placeholders.device
        self.layouts = [
            ImageLayout(sample, torch.arange(run.start, run.stop, device=device), parts, range(at, at + len(parts)))
            for (sample, run), parts, at in zip(runs, regions, starts, strict=True)
        ]

    def _encoded_starts(self, samples: list[int], counts: list[int]) -> list[int]:
        """Where each image's rows of the encoder output start.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.
        """
        assert self.encoded is not None
        wanted, encoded, batch = sum(counts), len(self.encoded.preview), len(self.placeholders)
        copies = wanted // encoded if encoded else 0
        if not wanted or wanted % encoded or batch % copies:
            raise ValueError(f"the prompt has visual tokens for {wanted} tiles, but {encoded} tiles were encoded")
        starts, next_start = [0] * len(counts), 0
        for sample in range(0, batch, copies):
            for copy in range(copies):
                mine = [i for i, row in enumerate(samples) if row == sample + copy]
                offsets = list(accumulate((counts[i] for i in mine), initial=next_start))
                for i, start in zip(mine, offsets, strict=False):
                    starts[i] = start
            next_start = offsets[-1]
        return starts

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
            dropped[image.sample, image.tokens[selection.kept]] = False
        dropped &= self.valid
        if any(len(s.kept) < image.num_tokens for image, s in zip(self.layouts, self.selections, strict=True)):
            self.cut = Cut.of(self.valid, dropped, self.key_valid[:, : self.past])
