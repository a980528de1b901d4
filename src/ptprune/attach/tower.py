"""One call of the vision encoder, tile by tile: which tiles it encodes, how many at a time, and what it knows already.

1. ``encode`` stands in for the forward of the vision tower. It works out which of the call's tiles make a picture,
   scores and chooses them from one read by the host, and encodes what was chosen, equal tiles once.
2. What was encoded is put in its places among all of the call's tiles; the others are zeros.
3. ``project`` stands in for the projector's forward, which so gets only the tiles that were encoded.
4. ``encoding`` tells the family which tokens have features. All others are dropped before the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ptprune.attach.patches import PatchCut
from ptprune.attach.rows import EncodedRows, blank
from ptprune.attach.setup import Setup
from ptprune.attach.tile_cache import TileCache, fingerprints, identity
from ptprune.attach.watch import watching
from ptprune.budget import passing
from ptprune.conventions import PIXELS, named
from ptprune.families.encoded import Encoded, Encoding, EvidenceRequest
from ptprune.families.prompt_image import PromptImage
from ptprune.scores.evidence import PATCH_ATTENTION
from ptprune.scores.region import mean_inside
from ptprune.scores.tiles import TILE_SCORES, TileEvidence, choose_tiles
from ptprune.upload import upload

PER_TILE = (PIXELS, "patch_attention_mask")  # arguments of vision towers that hold something for every tile


class TowerCall:
    """The work of one call of ``get_image_features``.

    Args:
        call: its arguments by name.
        names: the evidence that is wanted of the vision side.
        find: finds the call's images, described before they are encoded, in the prompt; None: there is none.
    """

    def __init__(
        self,
        setup: Setup,
        call: Mapping[str, Any],
        names: frozenset[str],
        find: Callable[[Sequence[Encoded]], list[PromptImage] | None],
    ) -> None:
        assert setup.encoder is not None
        self.setup, self.encoder, self.call = setup, setup.encoder, call
        self.names, self._find = names & PATCH_ATTENTION, find
        self.attention: dict[str, Tensor] = {}
        self.encoding: Encoding | None = None
        self._present: Tensor | None = None  # rows that have features; None: all
        self._borrowed: dict[int, int] = {}  # rows that are not encoded -> those whose features they get

    def encode(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the vision tower's forward."""
        self._arguments, self._original = named(original, args, kwargs), original
        self.pixels: Tensor = self._arguments[PIXELS]
        self.rows = len(self.pixels)
        self._made = EncodedRows(self.rows)
        with self.setup.lap("select"):
            chosen, kept, scores = self._choose()
            first = self._first_of_equals(chosen, kept)
            for row, other in self._borrowed.items():
                first[row] = first[other]
        todo = [row for row in range(self.rows) if chosen[row] and first[row] == row and row not in self._made]
        with self.setup.lap("select"):
            todo = self._from_cache(todo, kept)
        self._run(todo, kept, self.names)
        with self.setup.lap("select"):
            self._made.copy({row: first[row] for row in range(self.rows) if chosen[row] and first[row] != row})
            self._describe(chosen, kept, first, scores)
            return self._output()

    def project(self, original: Callable[..., Any], features: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In the place of the projector's forward: only what was encoded is projected, the rest is zeros."""
        if self._present is None:
            return original(features, *args, **kwargs)
        tokens = original(features.index_select(0, self._present), *args, **kwargs)
        return blank(tokens, len(features)).index_copy_(0, self._present, tokens)

    # --- what is encoded ----------------------------------------------------------------------------------------------

    @property
    def side(self) -> int:
        """Tokens a side of a tile."""
        patch = self.encoder.tower.config.patch_size
        return self.pixels.shape[-2] // (patch if isinstance(patch, int) else patch[0]) // self.encoder.block

    @cached_property
    def images(self) -> list[PromptImage]:
        """The pictures that the tiles make; none where there is no prompt to tell."""
        settings = self.setup.pruner
        if not settings.leaves_out:
            return []
        tokens = SimpleNamespace(shape=torch.Size((self.rows * self.side**2, 1)))
        sizes = SimpleNamespace(pooler_output=[tokens])
        nothing = EvidenceRequest(frozenset(), settings.window)
        planned = self.setup.family.encoded(self.setup.model, self.call, sizes, {}, nothing)
        return self._find(planned) or []

    def _choose(self) -> tuple[np.ndarray, list[int], list[float | None]]:
        """Which rows are encoded, how many token groups of each pass the cut in the tower, and the tiles' scores."""
        settings, everything = self.setup.pruner, self.side**2
        chosen, kept = np.ones(self.rows, bool), [everything] * self.rows
        scores: list[float | None] = [None] * self.rows
        if not self.images:
            return chosen, kept, scores
        chosen[:] = False
        asked: list[list[int]] = []
        for image in self.images:
            rows, thumbnail = list(image.encoded.rows), image.layout.thumbnail
            if settings.tiles == "all" or thumbnail is None:
                chosen[rows] = True
            else:
                chosen[rows[thumbnail]] = True
                asked.append([row for region, row in enumerate(rows) if region != thumbnail])
        if asked:
            found = iter(self._scores(asked))
            for rows in asked:
                values = [next(found) for _ in rows]
                chosen[rows] = choose_tiles(values, settings.tiles, settings.tile_threshold)
                for row, value in zip(rows, values, strict=True):
                    scores[row] = value
                if settings.left_out == "background":
                    quietest = rows[int(np.argmin(values))]
                    self._borrowed |= {row: quietest for row in rows if not chosen[row] and row != quietest}
                    chosen[rows] = True
        if settings.vision_layer is not None:
            for image in self.images:
                for row, number in self._shares(image, chosen).items():
                    kept[row] = number
        for row in self._made.order:  # thumbnails that were looked at are whole
            kept[row] = everything
        return chosen, kept, scores

    def _shares(self, image: PromptImage, chosen: np.ndarray) -> dict[int, int]:
        """How many token groups of each row of an image pass the cut inside the tower."""
        settings, rows = self.setup.pruner, list(image.encoded.rows)
        pairs = zip(rows, image.layout.regions, strict=True)
        tokens = sum(region.num_tokens for row, region in pairs if chosen[row])
        whole, left = self.side**2, settings.num_kept(image.layout.num_tokens)
        return dict.fromkeys(rows, passing(whole, left, tokens, settings.vision_margin, settings.vision_floor))

    def _scores(self, asked: Sequence[Sequence[int]]) -> list[float]:
        """The scores of all tiles that may be left out, from one read that brings the fingerprints too."""
        score = TILE_SCORES[self.setup.pruner.tile_score]
        whole = [image for image in self.images if image.layout.thumbnail is not None]
        values: list[Tensor] = []
        for image, rows in zip(whole, asked, strict=True):
            evidence = TileEvidence(self._of(self.pixels, rows), partial(self._seen, image, whole))
            values.append(score.compute(evidence).detach().double())
        prints = self._fingerprints
        read = torch.cat([torch.cat(values).view(torch.long), prints.flatten()]).cpu().numpy()
        number = sum(map(len, asked))
        self._prints = list(map(tuple, read[number:].reshape(self.rows, -1).tolist()))
        scores = read[:number].view(np.float64).tolist()
        score.check_finite(scores)
        return scores

    def _seen(self, image: PromptImage, images: Sequence[PromptImage]) -> Tensor:
        """The attention of an image's thumbnail that falls on each of its tiles; encodes all thumbnails first."""
        thumbnails = {id(each): each.encoded.rows[each.layout.thumbnail] for each in images}  # type: ignore[index]
        if not self._made.order:
            rows, everything = list(thumbnails.values()), self.side**2
            self._run(rows, [everything] * self.rows, self.names | {"encoder_attention"})
        paid = self._made.attention["encoder_attention"][thumbnails[id(image)]]
        side = round(len(paid) ** 0.5)
        seen = mean_inside(paid.view(side, side), image.layout.places())
        tiles = [region for region in range(len(image.layout.regions)) if region != image.layout.thumbnail]
        return self._of(seen, tiles)

    @staticmethod
    def _of(values: Tensor, rows: Sequence[int]) -> Tensor:
        """Some rows of a tensor, without a copy where they stand together."""
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return values[rows[0] : rows[0] + len(rows)]
        return values[upload(np.array(rows), values.device)]

    # --- tiles that are known already ---------------------------------------------------------------------------------

    _prints: list[Hashable] | None = None  # one a row, on the host

    @cached_property
    def _fingerprints(self) -> Tensor:
        """LongTensor [rows, n]."""
        given = [self._arguments[name] for name in PER_TILE if self._arguments.get(name) is not None]
        return torch.cat([fingerprints(each) for each in given], dim=1)

    def _first_of_equals(self, chosen: np.ndarray, kept: Sequence[int]) -> list[int]:
        """For each row the first chosen one that is the same, where the host knows, or a cache makes it worthwhile."""
        if self._prints is None:
            if self.setup.cache is None:
                return list(range(self.rows))
            self._prints = list(map(tuple, self._fingerprints.tolist()))
        seen: dict[Hashable, int] = {}
        pairs = enumerate(zip(self._prints, kept, strict=True))
        return [seen.setdefault(pair, row) if chosen[row] else row for row, pair in pairs]

    @cached_property
    def _settings_key(self) -> Hashable:
        flags = tuple(sorted((k, repr(v)) for k, v in self._arguments.items() if k not in PER_TILE))
        return (
            identity(self.encoder.tower),
            self.names,
            self.setup.pruner.vision_layer,
            flags,
            tuple(self.pixels.shape[1:]),
        )

    @property
    def _cache(self) -> TileCache | None:
        """The cache, where features without gradients will do."""
        tower = self.encoder.tower
        needs = torch.is_grad_enabled() and (
            self.pixels.requires_grad or any(weight.requires_grad for weight in tower.parameters())
        )
        return None if needs else self.setup.cache

    def _key(self, row: int, kept: Sequence[int]) -> Hashable:
        assert self._prints is not None
        return self._prints[row], kept[row], self._settings_key

    def _from_cache(self, todo: list[int], kept: Sequence[int]) -> list[int]:
        """Take over what the cache knows. Returns the rows that it does not."""
        if (cache := self._cache) is None:
            return todo
        left = []
        for row in todo:
            tile = cache.get(self._key(row, kept))
            if tile is None:
                left.append(row)
            else:
                self._made.take(row, tile)
        return left

    def _remember(self, rows: Sequence[int], kept: Sequence[int]) -> None:
        if (cache := self._cache) is not None:
            for row in rows:
                cache.put(self._key(row, kept), self._made.tile(row, self.names))

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _run(self, rows: Sequence[int], kept: Sequence[int], names: frozenset[str]) -> None:
        """Encode rows, those that lose as many patches together, at most ``tile_batch`` at a time."""
        for number in sorted({kept[row] for row in rows}, reverse=True):
            alike = [row for row in rows if kept[row] == number]
            size = self.setup.pruner.tile_batch or len(alike)
            for start in range(0, len(alike), size):
                self._run_together(alike[start : start + size], number, names)

    def _run_together(self, rows: list[int], number: int, names: frozenset[str]) -> None:
        given = dict(self._arguments)
        if rows != list(range(self.rows)):
            for name in PER_TILE:
                if given.get(name) is not None:
                    given[name] = self._of(given[name], rows)
        layer = self.setup.pruner.vision_layer
        cut = None
        if layer is not None and number < self.side**2:
            has_cls = self.setup.family.has_cls(self.setup.model, self.call)
            cut = PatchCut(self.setup, self.encoder, has_cls, layer, self.side, number)
        with watching(self.setup, self.call, names) as seen, ExitStack() as undo:
            if cut is not None:
                undo.callback(cut.disarm)
                cut.arm()
            with self.setup.lap("vision"):
                output = self._original(**given)
        with self.setup.lap("select"):
            attention = {name: parts[-1].view(len(rows), -1) for name, parts in seen.items()}  # one call of the module
            self._made.add(rows, output, attention, cut)

    def _describe(
        self, chosen: np.ndarray, kept: Sequence[int], first: Sequence[int], scores: Sequence[float | None]
    ) -> None:
        """Tell which tokens have features, and keep new tiles in the cache."""
        self.attention = {name: self._made.attention[name].flatten() for name in self.names}
        if self.setup.cache is not None:
            self._remember([row for row in self._made.new if first[row] == row], kept)
        if chosen.all() and not self._made.groups and not any(score is not None for score in scores):
            return
        tokens = np.repeat(chosen[:, None], self.side**2, axis=1)
        for row, groups in self._made.groups_on_host().items():
            tokens[row] = False
            tokens[row, groups] = True
        borrowed = np.zeros(self.rows, bool)
        borrowed[list(self._borrowed)] = True
        self.encoding = Encoding(tokens, scores, borrowed)
        if not chosen.all():
            self._present = upload(chosen.nonzero()[0], self.pixels.device)

    def _output(self) -> BaseModelOutputWithPooling:
        if self._made.untouched is not None:
            return self._made.untouched
        return self._made.output()
