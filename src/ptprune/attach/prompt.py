"""The prompt of a prefill with pictures: where pictures, question and padding stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptprune.errors import Refused
from ptprune.families.base import Family
from ptprune.families.encoded import EncodedImage
from ptprune.families.prompt_image import PromptImage


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a forward pass is given, before anything is encoded.

    Attributes:
        given: LongTensor [batch, length] of token ids, or FloatTensor [batch, length, d] of embeddings.
        placeholders: BoolTensor [batch, length], where image features are merged in.
        videos: BoolTensor [batch, length], where video features are; or None.
        key_valid: BoolTensor [batch, past + length], the real keys, those of the cache first.
        key_columns: LongTensor [batch, past + length], where those keys stood in the sequence.
        prompt_length: columns that are prompt; drafts of assisted decoding may follow.
    """

    given: Tensor
    placeholders: Tensor
    videos: Tensor | None
    key_valid: Tensor
    key_columns: Tensor
    prompt_length: int

    @property
    def length(self) -> int:
        return self.placeholders.shape[1]

    @property
    def valid(self) -> Tensor:
        """BoolTensor [batch, length], the new columns that are not padding."""
        return self.key_valid[:, self.key_valid.shape[1] - self.length :]

    def find_images(self, family: type[Family], parts: Sequence[EncodedImage]) -> tuple[list[PromptImage], int]:
        """The images of each prompt's first copy, and how many batch rows each prompt has.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.

        Args:
            parts: what the vision side left behind.

        Raises:
            Refused: where the placeholders do not fit the encoded images.
        """
        wanted, encoded = int(self.placeholders.sum()), sum(part.num_placeholders for part in parts)
        if not wanted or not encoded or wanted % encoded or len(self.placeholders) % (wanted // encoded):
            raise Refused(f"the prompt has places for {wanted} visual tokens, but {encoded} were encoded")
        copies = wanted // encoded
        left, images = list(parts), []
        for sample in range(0, len(self.placeholders), copies):
            tokens = self.placeholders[sample].nonzero()[:, 0]
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

    def instruction(self, copies: int) -> list[Tensor]:
        """The instruction's columns, a LongTensor a batch row: the text after the last visual token, else all text
        [ours]; none in a row without images or one that repeats the row before."""
        columns = torch.arange(self.length, device=self.placeholders.device)
        visual = self.placeholders if self.videos is None else self.placeholders | self.videos
        text = self.valid & ~visual & (columns < self.prompt_length)
        last = torch.where(visual, columns, -1).amax(dim=1, keepdim=True)
        after = text & (columns > last)
        chosen = torch.where(after.any(dim=1, keepdim=True), after, text) & self.placeholders.any(dim=1, keepdim=True)
        chosen &= (torch.arange(len(chosen), device=chosen.device) % copies == 0)[:, None]
        return [row.nonzero()[:, 0] for row in chosen]


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
