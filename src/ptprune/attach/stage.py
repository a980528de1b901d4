"""One stage of a pruned prefill: from raw attention rows to the selections and the cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptprune.attach.cut import Cut
from ptprune.attach.prompt import Prompt
from ptprune.errors import BrokenPass
from ptprune.families.base import Family
from ptprune.families.encoded import EncodedImage
from ptprune.families.prompt_image import PromptImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(eq=False)
class Stage:
    """A prefill up to one cut; a method that drops in stages has one for each, in the columns that are left.

    Attributes:
        placeholders: BoolTensor [batch, length], where image features are.
        key_valid: BoolTensor [batch, past + length], the real keys, those of the cache first.
        key_columns: LongTensor [batch, past + length], where those keys stood in the sequence.
        images: those of each prompt's first copy.
        copies: batch rows of each prompt; beams and several returns repeat it.
        instruction: LongTensors, the columns of the instruction in each batch row; see ``Prompt.instruction``.
        earlier: the stage before this one.
        embeddings, hidden_states: [batch, length, d], what the language model's first layer and the layer of the cut
            take, where a method asks for them.
        attention: name in ``ImageEvidence`` -> for each batch row a FloatTensor [..., past + length], what the
            instruction pays.
    """

    placeholders: Tensor
    key_valid: Tensor
    key_columns: Tensor
    images: list[PromptImage]
    copies: int
    instruction: list[Tensor]
    earlier: Stage | None = None
    embeddings: Tensor | None = None
    hidden_states: Tensor | None = None
    attention: dict[str, list[Tensor]] = field(default_factory=dict)
    _selections: list[Selection] | None = None

    @classmethod
    def first(cls, prompt: Prompt, family: type[Family], parts: Sequence[EncodedImage]) -> Stage:
        """The stage before any cut, once the images are encoded.

        Raises:
            Refused: where the prompt does not fit the encoded images.
        """
        images, copies = prompt.find_images(family, parts)
        instruction = prompt.instruction(copies)
        return cls(prompt.placeholders, prompt.key_valid, prompt.key_columns, images, copies, instruction)

    @property
    def number(self) -> int:
        return 0 if self.earlier is None else self.earlier.number + 1

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

    def select(self, choose: Callable[[ImageEvidence], Selection]) -> None:
        """Choose every image's tokens."""
        self.keep([choose(self.evidence(found)) for found in self.images])

    def evidence(self, found: PromptImage) -> ImageEvidence:
        """What was computed for one image."""
        layout = found.layout
        rows = {name: rows[layout.sample][..., self.past + layout.tokens] for name, rows in self.attention.items()}
        return found.evidence(self.number, **rows, **self._states(layout))

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
        for found, selection in zip(self.images, self.selections, strict=True):
            layout = found.layout
            if selection.states is not None:
                columns = layout.tokens[selection.kept].to(hidden_states.device)
                hidden_states = hidden_states.clone()
                for row in range(layout.sample, layout.sample + self.copies):
                    hidden_states[row, columns] = selection.states.to(hidden_states)
        return hidden_states

    def cut(self) -> Cut | None:
        """The cut that the selections make; None where every token stays."""
        dropped = torch.zeros_like(self.placeholders)
        for found, selection in zip(self.images, self.selections, strict=True):
            layout = found.layout
            gone = torch.ones_like(layout.tokens, dtype=torch.bool)
            gone[selection.kept] = False
            dropped[layout.sample : layout.sample + self.copies, layout.tokens[gone]] = True
        dropped &= self.valid
        if not bool(dropped.any()):
            return None
        return Cut.of(self.valid, dropped, self.key_valid[:, : self.past], self.key_columns)

    def next(self, cut: Cut | None) -> Stage:
        """The stage after this one: what the cut left."""
        if cut is None:
            same = (self.placeholders, self.key_valid, self.key_columns, self.images, self.copies, self.instruction)
            return Stage(*same, earlier=self, embeddings=self.embeddings)
        images = []
        for found, selection in zip(self.images, self.selections, strict=True):
            kept = found.layout.tokens[selection.kept]
            images.append(found.after(selection.kept, cut.find(found.layout.sample, kept)))
        return Stage(
            cut.states(self.placeholders),
            cut.key_valid,
            cut.key_columns,
            images,
            self.copies,
            [cut.find(row, columns) for row, columns in enumerate(self.instruction)],
            earlier=self,
            embeddings=None if self.embeddings is None else cut.states(self.embeddings),
        )

    def outcome(self) -> tuple[list[ImageLayout], list[Selection]]:
        """The images before any token was dropped, and what is left of them; scores are those of the first stage."""
        if self.earlier is None:
            return [found.layout for found in self.images], self.selections
        layouts, before = self.earlier.outcome()
        pairs = zip(before, self.selections, strict=True)
        return layouts, [Selection(old.kept[new.kept], old.saliency, old.scores) for old, new in pairs]
