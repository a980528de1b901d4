"""One stage of a pruned prefill: from what was computed for each image to the selections and the cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ptprune.attach.cut import Columns, Cut
from ptprune.attach.prompt import Prompt
from ptprune.errors import BrokenPass
from ptprune.families.base import Family
from ptprune.families.encoded import Encoded
from ptprune.families.prompt_image import PromptImage
from ptprune.layout import ImageLayout
from ptprune.report import PruningReport, write_report
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection
from ptprune.upload import upload


@dataclass(eq=False)
class Stage:
    """A prefill up to one cut; a method that drops in stages has one for each, in the columns that are left.

    Attributes:
        columns: where things stand now.
        images: those of each prompt's first copy.
        copies: batch rows of each prompt; beams and several returns repeat it.
        instruction: LongTensor [prompts, tokens], the columns of each prompt's instruction, see
            ``Prompt.instruction_columns``; the rows of shorter ones are padded.
        lengths: of each prompt's instruction.
        earlier: the stage before this one.
        embeddings, hidden_states: [batch, length, d], what the language model's first layer and the layer of the cut
            take, where a method asks for them.
        attention: name in ``ImageEvidence`` -> FloatTensor [prompts, ..., past + length], what the instruction pays.
        leaves_out: whether this stage, the first, drops only what was not encoded.
    """

    columns: Columns
    images: list[PromptImage]
    copies: int
    instruction: Tensor
    lengths: list[int]
    earlier: Stage | None = None
    embeddings: Tensor | None = None
    hidden_states: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)
    leaves_out: bool = False
    _selections: list[Selection] | None = None

    @classmethod
    def first(cls, prompt: Prompt, family: type[Family], encoded: Sequence[Encoded]) -> Stage:
        """The stage before any cut, once the images are encoded.

        Where some of an image was not encoded, nothing is left to choose in it: see ``leaves_out``.

        Raises:
            Refused: where the prompt does not fit the encoded images.
        """
        images, copies = prompt.find_images(family, encoded)
        instruction = prompt.instruction_columns(copies)
        lengths = [len(columns) for columns in instruction]
        padded = np.zeros((len(lengths), max(lengths)), np.int64)
        for row, columns in zip(padded, instruction, strict=True):
            row[: len(columns)] = columns
        stage = cls(_columns(prompt, images, copies), images, copies, prompt.upload(padded), lengths)
        if any(image.among is not None for image in images):
            stage.leaves_out = True
            stage.keep_all()
        return stage

    @property
    def before(self) -> Stage | None:
        """The stage before this one in which tokens were chosen."""
        return None if self.earlier is None or self.earlier.leaves_out else self.earlier

    @property
    def number(self) -> int:
        return 0 if self.before is None else self.before.number + 1

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

    def keep_all(self) -> None:
        """Every token of every image stays that was encoded."""
        layouts = [image.layout for image in self.images]
        self.keep([Selection(torch.arange(each.num_tokens, device=each.tokens.device)) for each in layouts])

    def select(
        self, choose: Callable[[Sequence[ImageEvidence]], list[Selection]], needs: Container[str], last: bool
    ) -> None:
        """Choose every image's tokens.

        Args:
            needs: names in ``ImageEvidence`` that choosing takes.
            last: whether no stage follows.
        """
        found = {**self._paid(), **self._states(needs)}
        earlier = [None] * len(self.images) if self.before is None else self.before.selections
        images = [
            image.evidence({name: of[number] for name, of in found.items()}, self.number, last, before)
            for number, (image, before) in enumerate(zip(self.images, earlier, strict=True))
        ]
        self.keep(choose(images))

    def _paid(self) -> dict[str, list[Tensor]]:
        """Name in ``ImageEvidence`` -> for each image the attention that the instruction pays to its tokens."""
        past, paid = self.columns.past, {}
        for name, values in self.attention.items():
            if values.ndim == 2:
                paid[name] = self._at_tokens(values, self.copies, past)
                continue
            paid[name] = []
            for layout in (image.layout for image in self.images):
                prompt, tokens = layout.sample // self.copies, layout.tokens + past if past else layout.tokens
                paid[name].append(values[prompt, : self.lengths[prompt]].index_select(-1, tokens))
        return paid

    def _states(self, needs: Container[str]) -> dict[str, list[Tensor]]:
        """Name in ``ImageEvidence`` -> for each image its tokens, or the instruction's, inside the language model."""
        inside = {"embeddings": self.embeddings, "hidden_states": self.hidden_states}
        states = {name: self._at_tokens(rows) for name, rows in inside.items() if rows is not None and name in needs}
        if self.embeddings is not None and "instruction_embeddings" in needs:
            states["instruction_embeddings"] = []
            for layout in (image.layout for image in self.images):
                prompt = layout.sample // self.copies
                columns = self.instruction[prompt, : self.lengths[prompt]]
                words = self.embeddings[layout.sample][columns.to(self.embeddings.device)]
                states["instruction_embeddings"].append(words.to(layout.tokens.device))
        return states

    def _at_tokens(self, rows: Tensor, copies: int = 1, past: int = 0) -> list[Tensor]:
        """Each image's tokens, of all images at once.

        Args:
            rows: [batch or prompts, past + length, ...].
            copies: batch rows that share one of ``rows``.

        Returns:
            [image's tokens, ...] each.
        """
        layouts = [image.layout for image in self.images]
        if len(layouts) == 1:
            [layout], rows = layouts, rows[layouts[0].sample // copies]
            places = layout.tokens + past if past else layout.tokens
            return [rows.index_select(0, places.to(rows.device)).to(layout.tokens.device)]
        sizes = [layout.num_tokens for layout in layouts]
        starts = [layout.sample // copies * rows.shape[1] + past for layout in layouts]
        tokens = torch.cat([layout.tokens for layout in layouts])
        places = tokens + upload(np.repeat(starts, sizes), tokens.device)
        found = rows.flatten(0, 1).index_select(0, places.to(rows.device))  # the rows behind one another
        return list(found.to(tokens.device).split(sizes))

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
        pairs = list(zip(self.images, self.selections, strict=True))
        if not self.leaves_out and all(len(selection.kept) == image.layout.num_tokens for image, selection in pairs):
            return None
        length, counts, sizes = self.columns.length, [0] * len(self.columns.counts), []
        kept, rows = [], []
        for image, selection in pairs:
            tokens = image.layout.tokens[selection.kept]
            for row in range(image.layout.sample, image.layout.sample + self.copies):
                kept.append(tokens)
                rows.append(row)
                sizes.append(len(tokens))
                counts[row] += len(tokens)
        flat = torch.cat(kept) if len(kept) > 1 else kept[0]
        if len(counts) > 1:
            flat = flat + upload(np.repeat(rows, sizes) * length, flat.device)
        return Cut.of(self.columns, flat, counts)

    def next(self, cut: Cut | None) -> Stage:
        """The stage after this one: what the cut left."""
        if cut is None:
            same = self.columns, self.images, self.copies, self.instruction, self.lengths
            return Stage(*same, earlier=self, embeddings=self.embeddings)
        images = []
        for image, selection in zip(self.images, self.selections, strict=True):
            if self.leaves_out:
                images.append(image.moved(cut.find(image.layout.sample, image.layout.tokens)))
                continue
            kept = image.layout.tokens[selection.kept]
            images.append(image.after(selection.kept, cut.find(image.layout.sample, kept)))
        rows = cut.index[:: self.copies].contiguous()
        return Stage(
            cut.after,
            images,
            self.copies,
            torch.searchsorted(rows, self.instruction),
            self.lengths,
            earlier=self,
            embeddings=None if self.embeddings is None else cut.states(self.embeddings),
        )

    def writer(self, valid: np.ndarray) -> Callable[[], PruningReport]:
        """Writes the report of what was kept so far; holds no evidence.

        Args:
            valid: bool array [batch, prompt length], the columns that are not padding.
        """
        layouts, selections, earlier = self._outcome()
        images = [replace(layout, sample=layout.sample // self.copies) for layout in layouts]
        return functools.partial(write_report, images, selections, valid[:: self.copies], earlier)

    def _outcome(self) -> tuple[list[ImageLayout], list[Selection], list[list[Tensor]]]:
        """The images before any token was dropped, what is left of them, with the scores of the first stage, and what
        was left after each stage before this one."""
        if self.before is None:
            pairs = zip(self.images, self.selections, strict=True)
            chosen = [image.in_whole(selection) for image, selection in pairs]
            return [image.whole for image in self.images], chosen, [[] for _ in chosen]
        layouts, before, earlier = self.before._outcome()
        both = zip(before, self.selections, strict=True)
        chosen = [Selection(old.kept[new.kept], old.saliency, old.scores) for old, new in both]
        return layouts, chosen, [[*kept, old.kept] for kept, old in zip(earlier, before, strict=True)]


def _columns(prompt: Prompt, images: Sequence[PromptImage], copies: int) -> Columns:
    """Where everything but the prunable tokens stands."""
    stays = prompt.valid.copy()
    samples = range(0, len(stays), copies)
    for sample, tokens in zip(samples, prompt.prunable(images, copies), strict=True):
        stays[sample : sample + copies, tokens] = False
    stays[:, -1] = True
    return Columns(
        prompt.upload(stays),
        stays.sum(axis=1).tolist(),
        None if prompt.valid.all() else prompt.upload(prompt.valid),
        bool(prompt.valid[:, -1].all()),
        prompt.past.length,
        prompt.past.valid,
        prompt.past.columns,
    )
