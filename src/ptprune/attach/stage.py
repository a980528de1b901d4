"""One stage of a pruned prefill: from what was computed for each image to the selections and the cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptprune.attach.cut import Cut
from ptprune.attach.prompt import Columns, Prompt
from ptprune.errors import BrokenPass
from ptprune.families.base import Family
from ptprune.families.encoded import Encoded
from ptprune.families.prompt_image import PromptImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(eq=False)
class Stage:
    """A prefill up to one cut; a method that drops in stages has one for each, in the columns that are left.

    Attributes:
        columns: where things stand now.
        images: those of each prompt's first copy.
        copies: batch rows of each prompt; beams and several returns repeat it.
        instruction: see ``Prompt.instruction_columns``.
        earlier: the stage before this one.
        embeddings, hidden_states: [batch, length, d], what the language model's first layer and the layer of the cut
            take, where a method asks for them.
        attention: name in ``ImageEvidence`` -> for each batch row a FloatTensor [..., past + length], what the
            instruction pays.
    """

    columns: Columns
    images: list[PromptImage]
    copies: int
    instruction: list[Tensor]
    earlier: Stage | None = None
    embeddings: Tensor | None = None
    hidden_states: Tensor | None = None
    attention: dict[str, list[Tensor]] = field(default_factory=dict)
    _selections: list[Selection] | None = None

    @classmethod
    def first(cls, prompt: Prompt, family: type[Family], encoded: Sequence[Encoded]) -> Stage:
        """The stage before any cut, once the images are encoded.

        Raises:
            Refused: where the prompt does not fit the encoded images.
        """
        images, copies = prompt.find_images(family, encoded)
        return cls(prompt.columns, images, copies, prompt.instruction_columns(copies))

    @property
    def number(self) -> int:
        return 0 if self.earlier is None else self.earlier.number + 1

    @property
    def chosen(self) -> bool:
        return self._selections is not None

    @property
    def selections(self) -> list[Selection]:
        """One an image.

        Raises:
            BrokenPass: before anything was chosen.
        """
        if self._selections is None:
            raise BrokenPass("the layer to drop tokens before was reached, but no tokens were chosen")
        return self._selections

    def keep(self, selections: list[Selection]) -> None:
        """Take over what was chosen."""
        self._selections = selections

    def select(self, choose: Callable[[Sequence[ImageEvidence]], list[Selection]]) -> None:
        """Choose every image's tokens."""
        self.keep(choose([self.evidence(image) for image in self.images]))

    def evidence(self, image: PromptImage) -> ImageEvidence:
        """What was computed for one image."""
        layout = image.layout
        keys = self.columns.past + layout.tokens
        paid = {name: rows[layout.sample][..., keys] for name, rows in self.attention.items()}
        return image.evidence(self.number, **paid, **self._states(layout))

    def _states(self, layout: ImageLayout) -> dict[str, Tensor]:
        """The image's tokens, and the instruction's, inside the language model."""
        states = {}
        if self.embeddings is not None:
            row = self.embeddings[layout.sample]
            states["embeddings"] = row[layout.tokens.to(row.device)]
            states["instruction_embeddings"] = row[self.instruction[layout.sample].to(row.device)]
        if self.hidden_states is not None:
            row = self.hidden_states[layout.sample]
            states["hidden_states"] = row[layout.tokens.to(row.device)]
        return {name: state.to(layout.tokens.device) for name, state in states.items()}

    def merge(self, hidden_states: Tensor) -> Tensor:
        """Put what methods made of the dropped tokens in the places of kept ones: [batch, length, d] -> the same."""
        for image, selection in zip(self.images, self.selections, strict=True):
            layout = image.layout
            if selection.states is not None:
                columns = layout.tokens[selection.kept].to(hidden_states.device)
                hidden_states = hidden_states.clone()
                for row in range(layout.sample, layout.sample + self.copies):
                    hidden_states[row, columns] = selection.states.to(hidden_states)
        return hidden_states

    def cut(self) -> Cut | None:
        """The cut that the selections make; None where every token stays."""
        columns = self.columns
        dropped = torch.zeros_like(columns.placeholders)
        for image, selection in zip(self.images, self.selections, strict=True):
            layout = image.layout
            gone = torch.ones_like(layout.tokens, dtype=torch.bool)
            gone[selection.kept] = False
            dropped[layout.sample : layout.sample + self.copies, layout.tokens[gone]] = True
        dropped &= columns.valid
        if not bool(dropped.any()):
            return None
        return Cut.of(columns.valid, dropped, columns.key_valid[:, : columns.past], columns.key_columns)

    def next(self, cut: Cut | None) -> Stage:
        """The stage after this one: what the cut left."""
        if cut is None:
            return Stage(self.columns, self.images, self.copies, self.instruction, self, self.embeddings)
        images = []
        for image, selection in zip(self.images, self.selections, strict=True):
            kept = image.layout.tokens[selection.kept]
            images.append(image.after(selection.kept, cut.find(image.layout.sample, kept)))
        return Stage(
            Columns(cut.states(self.columns.placeholders), cut.key_valid, cut.key_columns),
            images,
            self.copies,
            [cut.find(row, columns) for row, columns in enumerate(self.instruction)],
            earlier=self,
            embeddings=None if self.embeddings is None else cut.states(self.embeddings),
        )

    def outcome(self) -> tuple[list[ImageLayout], list[Selection]]:
        """The images before any token was dropped, and what is left of them; scores are those of the first stage."""
        if self.earlier is None:
            return [image.layout for image in self.images], self.selections
        layouts, before = self.earlier.outcome()
        pairs = zip(before, self.selections, strict=True)
        return layouts, [Selection(old.kept[new.kept], old.saliency, old.scores) for old, new in pairs]
