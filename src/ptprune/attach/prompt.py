"""The prompt of a prefill with pictures: where pictures, question and padding stand in it.

All of this is worked out on the host, from one read of the prompt's ids and mask: on a device each question about it
would launch kernels, and each answer would wait for all work that is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptprune.conventions import ModelCall
from ptprune.errors import Refused
from ptprune.families.base import Family, Model
from ptprune.families.encoded import Encoded
from ptprune.families.prompt_image import PromptImage
from ptprune.upload import upload


@dataclass(frozen=True, eq=False)
class Past:
    """What the cache holds before a prefill.

    Attributes:
        length: tokens held.
        valid: BoolTensor [batch, length], False on padding; None: all are real.
        columns: LongTensor [batch, length + new], where they and the new columns stand in the unpruned sequence; None:
            nothing was dropped before, so that they stand where they are.
    """

    length: int
    valid: Tensor | None = None
    columns: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a forward pass is given, before anything is encoded.

    Attributes:
        ids: int array [batch, length], the token ids, or equal numbers for equal embeddings.
        placeholders: bool array [batch, length], where image features are merged in.
        videos: bool array [batch, length], where video features are.
        valid: bool array [batch, length], False on padding.
        prompt_length: columns that are prompt; drafts of assisted decoding may follow.
        past: what the cache holds.
        device: of the prompt.
    """

    ids: Any
    placeholders: Any
    videos: Any
    valid: Any
    prompt_length: int
    past: Past
    device: torch.device

    @classmethod
    def read(cls, call: ModelCall, family: type[Family], model: Model, past: Past, prompt_length: int) -> Prompt:
        """Read the prompt and its mask from the device, once.

        Args:
            past: of a cache that was pruned before; of another one its length, the mask tells the rest.
        """
        given, mask = call.prompt, call.mask
        assert given is not None
        batch, length = given.shape[:2]
        ids, tokens = call.get("input_ids"), (family.image_token(model), family.video_token(model))
        if ids is not None:
            parts: list[Tensor] = [ids]
        else:
            marks = [_holds(model, given, token) for token in tokens if token is not None]
            parts = [_numbers(given), *marks]
        if mask is not None:
            parts.append(mask.to(given.device, torch.long))
        host = (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).cpu().numpy()
        read = np.split(host, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
        valid = np.ones((batch, length), bool)
        if mask is not None:
            whole = read.pop().astype(bool)
            valid = whole[:, -length:]
            if past.columns is None and not whole[:, : past.length].all():
                past = replace(past, valid=mask[:, : past.length].to(given.device, torch.bool))
        found = [read[0] == token for token in tokens] if ids is not None else [mark > 0 for mark in read[1:]]
        nothing = np.zeros((batch, length), bool)
        videos = nothing if tokens[1] is None else found[1]
        return cls(read[0], found[0], videos, valid, prompt_length, past, given.device)

    @property
    def length(self) -> int:
        return self.valid.shape[1]

    def find_images(self, family: type[Family], encoded: Sequence[Encoded]) -> tuple[list[PromptImage], int]:
        """The images of each prompt's first copy, and how many batch rows each prompt has.

        Beams and several returns repeat the prompts, [s0, s0, s1, s1], after the images were encoded once.

        Args:
            encoded: by the vision side.

        Raises:
            Refused: if the placeholders do not fit the encoded images.
        """
        wanted, known = int(self.placeholders.sum()), sum(each.num_placeholders for each in encoded)
        if not wanted or not known or wanted % known or len(self.placeholders) % (wanted // known):
            raise Refused(f"the prompt has places for {wanted} visual tokens, but {known} were encoded")
        copies = wanted // known
        left, found, columns = list(encoded), [], []
        for sample in range(0, len(self.placeholders), copies):
            [tokens] = self.placeholders[sample].nonzero()
            mine, gaps = _take(left, tokens.tolist(), self.ids[sample].tolist())
            found += [(sample, image) for image in (family.images(gaps, mine) if mine else ())]
            columns.append(tokens)
            if copies > 1 and len(mine) > 1 and family.repeats_pictures_wrong:
                raise Refused(
                    f"beams and several returns mix up the pictures of a prompt in transformers' {family.name}: "
                    "give one picture a prompt"
                )
        uploaded = self.upload(np.concatenate(columns))
        sizes = [image.num_placeholders for _, image in found]
        parts = uploaded.split(sizes) if len(sizes) > 1 else [uploaded]
        images = [PromptImage.at(sample, part, image) for (sample, image), part in zip(found, parts, strict=True)]
        return images, copies

    def instruction_columns(self, copies: int) -> list[Any]:
        """For each prompt an array: the text after the last visual token, or all text if there is none [ours].

        It is empty for a prompt without images.
        """
        found = []
        for sample in range(0, len(self.ids), copies):
            visual = self.placeholders[sample] | self.videos[sample]
            text = self.valid[sample] & ~visual
            text[self.prompt_length :] = False
            last = int(visual.nonzero()[0][-1]) if visual.any() else -1
            [columns] = text.nonzero()
            after = columns[columns > last]
            chosen = after if len(after) else columns
            found.append(chosen if self.placeholders[sample].any() else columns[:0])
        return found

    def prunable(self, images: Sequence[PromptImage], copies: int) -> list[Any]:
        """For each prompt an array: the columns of its images' tokens, without structural ones such as newlines."""
        found = []
        for sample in range(0, len(self.ids), copies):
            [columns] = self.placeholders[sample].nonzero()
            of = [image.encoded.region_of for image in images if image.layout.sample == sample]
            found.append(columns[np.concatenate(of) >= 0] if of else columns)
        return found

    def upload(self, array: Any) -> Tensor:
        """An array as a tensor on the prompt's device."""
        return upload(array, self.device)


def _holds(model: Model, embeddings: Tensor, token: int) -> Tensor:
    """LongTensor [batch, length], 1 where a prompt of embeddings holds a token; compared exactly, as models do."""
    embedding = model.get_input_embeddings()(torch.tensor(token, device=embeddings.device))
    return (embeddings == embedding.to(embeddings.device)).all(-1).long()


def _numbers(embeddings: Tensor) -> Tensor:
    """LongTensor [batch, length]: equal numbers for equal embeddings of a row."""
    return torch.stack([row.unique(dim=0, return_inverse=True)[1] for row in embeddings])


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
