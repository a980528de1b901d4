"""One pruned prefill: from placeholders and raw attention rows to the selections and the cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ptprune.attach.cut import Cut
from ptprune.attach.found import Found
from ptprune.errors import Refused
from ptprune.families.base import Family
from ptprune.families.encoded import EncodedImage
from ptprune.layout import ImageLayout
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection


@dataclass(eq=False)
class Prefill:
    """The state of one forward pass that brings images, up to one cut; a method that drops in stages has one for each,
    in the columns that the cuts before it left.

    Attributes:
        prompt: LongTensor [batch, length] of token ids, or FloatTensor [batch, length, d] of embeddings; of the first
            stage.
        placeholders: BoolTensor [batch, length], where image features are merged in.
        videos: BoolTensor [batch, length], where video features are, of the first stage; or None.
        key_valid: BoolTensor [batch, past + length], the real keys, those of the cache first.
        key_columns: LongTensor [batch, past + length], where those keys stood in the sequence.
        prompt_length: columns that are prompt, of the first stage; drafts of assisted decoding may follow.
        parts: what the vision side left behind; None until the images are encoded.
        attention: name in ``ImageEvidence`` -> for each batch row a FloatTensor [..., past + length], what the
            instruction pays.
        embeddings, hidden_states: [batch, length, d], what the language model's first layer and the layer of the cut
            take, where a method asks for them.
        images: those of each prompt's first copy.
        copies: batch rows of each prompt; beams and several returns repeat it.
        selections: one an image; None until chosen.
        cut: None until selected, and where every token stays.
        earlier: the stage before this one.
    """

    prompt: Tensor
    placeholders: Tensor
    videos: Tensor | None
    key_valid: Tensor
    key_columns: Tensor
    prompt_length: int
    parts: Sequence[EncodedImage] | None = None
    attention: dict[str, list[Tensor]] = field(default_factory=dict)
    embeddings: Tensor | None = None
    hidden_states: Tensor | None = None
    images: list[Found] = field(default_factory=list)
    copies: int = 1
    selections: list[Selection] | None = None
    cut: Cut | None = None
    earlier: Prefill | None = None

    @property
    def length(self) -> int:
        return self.placeholders.shape[1]

    @property
    def stage(self) -> int:
        return 0 if self.earlier is None else self.earlier.stage + 1

    @property
    def first(self) -> Prefill:
        """The stage before any cut."""
        return self if self.earlier is None else self.earlier.first

    @property
    def past(self) -> int:
        return self.key_valid.shape[1] - self.length

    @property
    def valid(self) -> Tensor:
        """BoolTensor [batch, length], the new columns that are not padding."""
        return self.key_valid[:, self.past :]

    @cached_property
    def instruction_rows(self) -> list[Tensor]:
        """The instruction's columns, a LongTensor a batch row: the text after the last visual token, else all text
        [ours]; none in a row without images or one that repeats the row before."""
        if (before := self.earlier) is not None:  # what stood last may have been dropped since
            rows = before.instruction_rows
            cut = before.cut
            return rows if cut is None else [cut.find(number, row) for number, row in enumerate(rows)]
        columns = torch.arange(self.length, device=self.placeholders.device)
        visual = self.placeholders if self.videos is None else self.placeholders | self.videos
        text = self.valid & ~visual & (columns < self.prompt_length)
        last = torch.where(visual, columns, -1).amax(dim=1, keepdim=True)
        after = text & (columns > last)
        chosen = torch.where(after.any(dim=1, keepdim=True), after, text) & self.placeholders.any(dim=1, keepdim=True)
        chosen &= (torch.arange(len(chosen), device=chosen.device) % self.copies == 0)[:, None]
        return [row.nonzero()[:, 0] for row in chosen]

    def find_images(self, family: type[Family]) -> None:
        """Fill ``images`` and ``copies``, once the images are encoded.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.

        Raises:
            Refused: where the placeholders do not fit the encoded images.
        """
        assert self.parts is not None
        wanted, encoded = int(self.placeholders.sum()), sum(part.num_placeholders for part in self.parts)
        if not wanted or wanted % encoded or len(self.placeholders) % (wanted // encoded):
            raise Refused(f"the prompt has places for {wanted} visual tokens, but {encoded} were encoded")
        self.copies = wanted // encoded
        left = list(self.parts)
        for sample in range(0, len(self.placeholders), self.copies):
            tokens = self.placeholders[sample].nonzero()[:, 0]
            parts, gaps = _take(left, tokens.tolist(), self._ids(sample))
            for image in family.images(gaps, parts) if parts else ():
                mine, tokens = tokens.tensor_split([image.num_placeholders])
                self.images.append(Found.at(sample, mine, image))
            if self.copies > 1 and len(parts) > 1 and family.repeats_pictures_wrong:
                raise Refused(
                    f"beams and several returns mix up the pictures of a prompt in transformers' {family.name}: "
                    "give one picture a prompt"
                )

    def _ids(self, sample: int) -> list[int]:
        """A prompt's token ids, or numbers that are alike where its embeddings are."""
        prompt = self.prompt[sample]
        return (prompt if prompt.ndim == 1 else prompt.unique(dim=0, return_inverse=True)[1]).tolist()

    def select(self, choose: Callable[[ImageEvidence], Selection]) -> list[Selection]:
        """Choose every image's tokens."""
        self.selections = [choose(self.evidence(found)) for found in self.images]
        return self.selections

    def evidence(self, found: Found) -> ImageEvidence:
        """What was computed for one image."""
        layout = found.layout
        rows = {name: rows[layout.sample][..., self.past + layout.tokens] for name, rows in self.attention.items()}
        return found.evidence(self.stage, **rows, **self._states(layout))

    def _states(self, layout: ImageLayout) -> dict[str, Tensor]:
        """The image's tokens, and the instruction's, inside the language model."""
        states = {}
        if self.embeddings is not None:
            row = self.embeddings[layout.sample]
            instruction = self.instruction_rows[layout.sample]
            states["embeddings"] = row[layout.tokens.to(row.device)]
            states["instruction_embeddings"] = row[instruction.to(row.device)]
        if self.hidden_states is not None:
            row = self.hidden_states[layout.sample]
            states["hidden_states"] = row[layout.tokens.to(row.device)]
        return {name: state.to(layout.tokens.device) for name, state in states.items()}

    def merge(self, hidden_states: Tensor) -> Tensor:
        """Put what methods made of the dropped tokens in the places of kept ones: [batch, length, d] -> the same."""
        assert self.selections is not None
        for found, selection in zip(self.images, self.selections, strict=True):
            layout = found.layout
            if selection.states is not None:
                columns = layout.tokens[selection.kept].to(hidden_states.device)
                hidden_states = hidden_states.clone()
                for row in range(layout.sample, layout.sample + self.copies):
                    hidden_states[row, columns] = selection.states.to(hidden_states)
        return hidden_states

    def make_cut(self) -> None:
        """From the selections to the cut; none where every token stays."""
        assert self.selections is not None
        dropped = torch.zeros_like(self.placeholders)
        for found, selection in zip(self.images, self.selections, strict=True):
            layout = found.layout
            gone = torch.ones_like(layout.tokens, dtype=torch.bool)
            gone[selection.kept] = False
            dropped[layout.sample : layout.sample + self.copies, layout.tokens[gone]] = True
        dropped &= self.valid
        if bool(dropped.any()):
            self.cut = Cut.of(self.valid, dropped, self.key_valid[:, : self.past], self.key_columns)

    def next(self) -> Prefill:
        """The stage after this one: what the cut left."""
        assert self.selections is not None
        after = replace(self, attention={}, hidden_states=None, selections=None, cut=None, earlier=self)
        if (cut := self.cut) is None:
            return after
        images = []
        for found, selection in zip(self.images, self.selections, strict=True):
            kept = found.layout.tokens[selection.kept]
            images.append(found.after(selection.kept, cut.find(found.layout.sample, kept)))
        return replace(
            after,
            placeholders=cut.states(self.placeholders),
            key_valid=cut.key_valid,
            key_columns=cut.key_columns,
            embeddings=None if self.embeddings is None else cut.states(self.embeddings),
            images=images,
        )

    def chosen(self) -> tuple[list[ImageLayout], list[Selection]]:
        """The images before any token was dropped, and what is left of them; scores are those of the first stage."""
        assert self.selections is not None
        if self.earlier is None:
            return [found.layout for found in self.images], self.selections
        layouts, before = self.earlier.chosen()
        now = self.selections
        return layouts, [replace(old, kept=old.kept[new.kept]) for old, new in zip(before, now, strict=True)]


def _take(left: list[EncodedImage], tokens: list[int], ids: list[int]) -> tuple[list[EncodedImage], list[list[int]]]:
    """Take from ``left`` the parts that fill one prompt's placeholders.

    Args:
        tokens: the columns of the placeholders.
        ids: of the whole prompt.

    Returns:
        The parts, and the ids before each, since the part before it.

    Raises:
        Refused: where a part's placeholders do not stand together.
    """
    parts, gaps, at, end = [], [], 0, 0
    while at < len(tokens):
        size = left[0].num_placeholders if left else 0
        run = tokens[at : at + size]
        if not run or len(run) < size or run[-1] - run[0] >= size:
            raise Refused(
                f"the {size or len(tokens)} visual tokens from prompt position {tokens[at]} on are not those of one "
                "encoded picture or tile: text stands between them, or the prompt was cut"
            )
        parts.append(left.pop(0))
        gaps.append(ids[end : run[0]])
        at, end = at + size, run[-1] + 1
    return parts, gaps
