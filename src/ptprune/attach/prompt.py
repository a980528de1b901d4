"""The prompt of a prefill with pictures: where pictures, question and padding stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptprune.errors import Refused
from ptprune.families.base import Family
from ptprune.families.encoded import Encoded
from ptprune.families.prompt_image import PromptImage


@dataclass(frozen=True, eq=False)
class Columns:
    """Where things stand in a batch: first what the cache holds ("past"), then the new columns.

    Attributes:
        placeholders: BoolTensor [batch, length], the new columns into which image features are merged.
        key_valid: BoolTensor [batch, past + length], the real keys.
        key_columns: LongTensor [batch, past + length], where those keys stood in the unpruned sequence.
    """

    placeholders: Tensor
    key_valid: Tensor
    key_columns: Tensor

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


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a forward pass is given, before anything is encoded.

    Attributes:
        given: LongTensor [batch, length] of token ids, or FloatTensor [batch, length, d] of embeddings.
        columns: where it stands.
        videos: BoolTensor [batch, length], where video features are; or None.
        prompt_length: columns that are prompt; drafts of assisted decoding may follow.
    """

    given: Tensor
    columns: Columns
    videos: Tensor | None
    prompt_length: int

    def find_images(self, family: type[Family], encoded: Sequence[Encoded]) -> tuple[list[PromptImage], int]:
        """The images of each prompt's first copy, and how many batch rows each prompt has.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.

        Args:
            encoded: by the vision side.

        Raises:
            Refused: where the placeholders do not fit the encoded images.
        """
        placeholders = self.columns.placeholders
        wanted, known = int(placeholders.sum()), sum(each.num_placeholders for each in encoded)
        if not wanted or not known or wanted % known or len(placeholders) % (wanted // known):
            raise Refused(f"the prompt has places for {wanted} visual tokens, but {known} were encoded")
        copies = wanted // known
        left, images = list(encoded), []
        for sample in range(0, len(placeholders), copies):
            tokens = placeholders[sample].nonzero()[:, 0]
            mine, gaps = _take(left, tokens.tolist(), self._ids(sample))
            for image in family.images(gaps, mine) if mine else ():
                columns, tokens = tokens.tensor_split([image.num_placeholders])
                images.append(PromptImage.at(sample, columns, image))
            if copies > 1 and len(mine) > 1 and family.repeats_pictures_wrong:
                raise Refused(
                    f"beams and several returns mix up the pictures of a prompt in transformers' {family.name}: "
                    "give one picture a prompt"
                )
        return images, copies

    def _ids(self, sample: int) -> list[int]:
        """A prompt's token ids, or numbers that are alike where its embeddings are."""
        prompt = self.given[sample]
        return (prompt if prompt.ndim == 1 else prompt.unique(dim=0, return_inverse=True)[1]).tolist()

    def instruction_columns(self, copies: int) -> list[Tensor]:
        """For each batch row a LongTensor: the text after the last visual token, or all text if there is none [ours].

        It is empty for a row without images and for one that repeats the row before.
        """
        placeholders, valid = self.columns.placeholders, self.columns.valid
        columns = torch.arange(self.columns.length, device=placeholders.device)
        visual = placeholders if self.videos is None else placeholders | self.videos
        text = valid & ~visual & (columns < self.prompt_length)
        last = torch.where(visual, columns, -1).amax(dim=1, keepdim=True)
        after = text & (columns > last)
        chosen = torch.where(after.any(dim=1, keepdim=True), after, text) & placeholders.any(dim=1, keepdim=True)
        chosen &= (torch.arange(len(chosen), device=chosen.device) % copies == 0)[:, None]
        return [row.nonzero()[:, 0] for row in chosen]


def _take(left: list[Encoded], tokens: list[int], ids: list[int]) -> tuple[list[Encoded], list[list[int]]]:
    """Take from ``left`` what fills one prompt's placeholders.

    Args:
        tokens: the columns of the placeholders.
        ids: of the whole prompt.

    Returns:
        What was taken, and the ids before each, since the one before it.

    Raises:
        Refused: where a part's placeholders do not stand together.
    """
    taken, gaps, at, end = [], [], 0, 0
    while at < len(tokens):
        size = left[0].num_placeholders if left else 0
        run = tokens[at : at + size]
        if not run or len(run) < size or run[-1] - run[0] >= size:
            raise Refused(
                f"the {size or len(tokens)} visual tokens from prompt position {tokens[at]} on are not those of one "
                "encoded picture or tile: text stands between them, or the prompt was cut"
            )
        taken.append(left.pop(0))
        gaps.append(ids[end : run[0]])
        at, end = at + size, run[-1] + 1
    return taken, gaps
