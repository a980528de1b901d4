"""Stages B and C: scenes with questions as sequences for the language model.

Several questions share one picture: the sequence is the prompt up to the picture's end, then one block for each
question. A block sees the picture and itself, and its positions go on from the picture's end, so each is exactly the
sequence that the chat template gives for that question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptprune.tiny.document_questions import DOCUMENT_KINDS, ask_document
from ptprune.tiny.documents import Document
from ptprune.tiny.questions import QUESTION_KINDS, Question, ask, caption
from ptprune.tiny.scenes import Scene, generate_scene, grids

from .data import cut_tiles, normalise
from .model import ASSISTANT, END, IMAGE, IMAGE_END, IMAGE_START, LIST, PAD, TOKENS, USER

KINDS_ASKED = (*QUESTION_KINDS, *DOCUMENT_KINDS)
CAPTION = len(KINDS_ASKED)
"""Stands for the kind of a caption's tokens."""
IGNORE = -100
SLOW = ("digit-by-colour", "letter-by-colour")


@dataclass
class Pack:
    """Sequences of equal length. ids, position, block, target, kind: int64 [scenes, length].

    block: 0 for the picture, 1, 2, ... for the questions, -1 for padding. target: the token to predict, -100 for none.
    kind: index of the question's kind where its answer's word is predicted, -1 elsewhere.
    """

    ids: np.ndarray
    position: np.ndarray
    block: np.ndarray
    target: np.ndarray
    kind: np.ndarray


class Packer:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=None)(lambda text: tuple(tokenizer(text)["input_ids"]))
        (self.end,), (self.user,), (self.assistant,) = (self.encode(t) for t in (END, USER, ASSISTANT))
        self.pad, self.image = self.encode(PAD)[0], self.encode(IMAGE)[0]

    def turns(self, questions: list[Question]) -> tuple[list[int], list[int], list[int]]:
        """Tokens, targets and kinds of one conversation after the picture."""
        ids: list[int] = []
        target: list[int] = []
        kinds: list[int] = []
        for number, question in enumerate(questions):
            head = [self.user] if number else []
            head += [*self.encode(" " + question.text), self.end, self.assistant]
            answer = [*self.encode(" " + question.answer), self.end] if question.answer else [self.end]
            ids += head + answer
            target += [IGNORE] * (len(head) - 1) + answer + [IGNORE]
            kind = CAPTION if question.kind == "caption" else KINDS_ASKED.index(question.kind)
            kinds += [-1] * (len(head) - 1)
            kinds += [kind] * (len(answer) - 1 if kind == CAPTION else 1)
            kinds += [-1] * (len(ids) - len(kinds))
        return ids, target, kinds

    def pack(
        self,
        scenes: Sequence[Scene | Document],
        conversations: list[list[list[Question]]],
        gaps: list[np.ndarray] | None = None,
        multiple: int = 1,
    ) -> Pack:
        """Sequences of several conversations about a picture each.

        gaps : for each scene and tile, how far the positions jump after the tile.
        multiple : the length is padded to a multiple of this.
        """
        rows = []
        for index, (scene, blocks) in enumerate(zip(scenes, conversations, strict=True)):
            images = scene.tiles + (scene.tiles > 1)
            prefix = [self.user, *self.encode(IMAGE_START), *[self.image] * (TOKENS * images), *self.encode(IMAGE_END)]
            places = np.arange(len(prefix))
            if gaps is not None:
                jumps = gaps[index].cumsum()
                places[2:-1] += np.repeat(np.concatenate([[0], jumps[:-1]]), TOKENS)
                places[-1] += jumps[-1]
            row = [(prefix, places, [0] * len(prefix), [IGNORE] * len(prefix), [-1] * len(prefix))]
            for number, questions in enumerate(blocks, start=1):
                ids, target, kinds = self.turns(questions)
                start = int(places[-1]) + 1
                row.append((ids, list(range(start, start + len(ids))), [number] * len(ids), target, kinds))
            rows.append([np.concatenate([part[i] for part in row]) for i in range(5)])
        longest = -(-max(len(row[0]) for row in rows) // multiple) * multiple

        def field(index: int, fill: int) -> np.ndarray:
            padded = [np.pad(row[index], (0, longest - len(row[index])), constant_values=fill) for row in rows]
            return np.stack(padded).astype(np.int64)

        return Pack(*(field(i, fill) for i, fill in enumerate((self.pad, 0, -1, IGNORE, -1))))


def conversations(
    scene: Scene | Document, seed: int, questions: int, captions: bool, long: bool, extra: int = 0
) -> list[list[Question]]:
    """One-question conversations, perhaps one with several turns, perhaps one that lists everything.

    ``extra`` more questions are of the kinds that are learnt last. Nothing lists a page.
    """
    if isinstance(scene, Document):
        chosen = ask_document(scene, questions + extra, seed)
        again = ask_document(scene, 3, seed + 1)
        return [*([question] for question in chosen), *([again] if long else [])]
    chosen = ask(scene, questions, seed)
    if extra:
        chosen += [q for q in ask(scene, extra, seed + 1_000_003, kinds=SLOW) if q not in chosen]
    result = [[question] for question in chosen]
    if long and len(chosen) >= 2:
        again = ask(scene, 3, seed + 1)
        result.append(again)
    if captions:
        result.append([Question("caption", LIST, caption(scene))])
    return result


def make_scenes(seed: int, count: int, tiles: int, fill: tuple[float, float], split: str = "train") -> list[Scene]:
    """Scenes of one number of tiles, so that their sequences need no padding."""
    shapes = grids(tiles, tiles)
    return [
        generate_scene(split, seed * 64 + i, grid=shapes[(seed + i) % len(shapes)], fill=fill) for i in range(count)
    ]


def attention_mask(block: Tensor) -> Tensor:
    """Additive mask [scenes, 1, length, length]: causal, and a block sees the picture and itself only."""
    length = block.shape[1]
    query, key = block[:, :, None], block[:, None, :]
    seen = (key == 0) | (query == key)
    seen &= torch.ones(length, length, dtype=torch.bool, device=block.device).tril()
    return torch.zeros(seen.shape, device=block.device).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]


def embedded(model: nn.Module, ids: Tensor, visual: Tensor) -> Tensor:
    """The sequences' embeddings, with the visual tokens [rows, tokens, width] behind the first two of each."""
    words = model.get_input_embeddings()(ids)
    return torch.cat([words[:, :2], visual.to(words.dtype), words[:, 2 + visual.shape[1] :]], dim=1)


def hidden_states(model: nn.Module, pack: Pack, tokens: Tensor) -> Tensor:
    """tokens: projected visual tokens [all tiles of all scenes, 16, width], in the order of the scenes."""
    ids = torch.from_numpy(pack.ids)
    embeddings = model.get_input_embeddings()(ids)
    image = ids == model.config.image_token_id
    embeddings = embeddings.masked_scatter(image[..., None].expand_as(embeddings), tokens)
    return model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=attention_mask(torch.from_numpy(pack.block)),
        position_ids=torch.from_numpy(pack.position),
        use_cache=False,
    ).last_hidden_state


def language_losses(model: nn.Module, pack: Pack, hidden: Tensor) -> tuple[Tensor, dict[str, float]]:
    target = torch.from_numpy(pack.target)
    kind = torch.from_numpy(pack.kind)
    where = target != IGNORE
    logits = model.lm_head(hidden[where])
    each = F.cross_entropy(logits, target[where], reduction="none")
    kinds = kind[where]
    answer, listing, ending = (kinds >= 0) & (kinds < CAPTION), kinds == CAPTION, kinds < 0
    loss = each[answer].mean() + 0.1 * each[ending].mean()
    notes = {"answer": float(each[answer].mean().detach())}
    if listing.any():
        loss = loss + 0.5 * each[listing].mean()
        notes["caption"] = float(each[listing].mean().detach())
    right = logits.detach().argmax(-1) == target[where]
    for index, name in enumerate(QUESTION_KINDS):
        of = kinds == index
        notes[f"right/{name}"] = float(right[of].sum())
        notes[f"asked/{name}"] = float(of.sum())
    return loss, notes


@torch.no_grad()
def language_accuracy(model: nn.Module, packer: Packer, scenes: list[Scene], questions: int = 8) -> dict[str, float]:
    """Share of right answers by kind. Answers are single tokens: one forward pass tells what greedy decoding says."""
    right = dict.fromkeys(QUESTION_KINDS, 0.0)
    asked = dict.fromkeys(QUESTION_KINDS, 0.0)
    for scene in scenes:
        tokens = model.model.get_image_features(normalise(cut_tiles(scene)), return_dict=True).pooler_output
        pack = packer.pack([scene], [conversations(scene, scene.seed, questions, False, False)])
        _, notes = language_losses(model, pack, hidden_states(model, pack, tokens))
        for kind in QUESTION_KINDS:
            right[kind] += notes[f"right/{kind}"]
            asked[kind] += notes[f"asked/{kind}"]
    result = {kind: round(right[kind] / max(1, asked[kind]), 4) for kind in QUESTION_KINDS}
    result["all"] = round(sum(right.values()) / sum(asked.values()), 4)
    return result
