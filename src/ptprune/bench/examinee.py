"""A model under examination: items in, answers out; and the baselines that show it less of a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from PIL import Image

from ptprune.asking.chat import ask_about, chat_inputs, check_text, make_prompt
from ptprune.asking.dialogue import last_answer
from ptprune.asking.loaded import Generated, LoadedModel
from ptprune.attach.tile_cache import TileCache
from ptprune.bench.candidates import DOWNSAMPLE, THUMBNAIL_ALONE
from ptprune.bench.items import Item
from ptprune.bench.work import share_of_unpruned
from ptprune.errors import SettingError, UserError
from ptprune.families import family_of
from ptprune.methods import PyramidTokenPruning
from ptprune.pruner import TokenPruner
from ptprune.shapes import ModelShape

Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """A way to show a picture to the model."""

    options: tuple[tuple[str, Any], ...] = ()  # of the image processor, instead of its own
    size: Size | None = None  # (width, height) that the picture is brought to first; None: as it is


AS_IT_IS = View()
REMEMBERED = 3 * 2**30
"""Bytes of what the tower made of tiles."""


class Answers(NamedTuple):
    """Answers to items, each about one picture, and means over these pictures."""

    texts: list[str]
    kept_tokens: float  # visual tokens that stayed
    encoded_tiles: float  # share of tiles, thumbnail included, that were encoded
    encoded_tokens: float  # share of visual tokens that went through the whole encoder


@dataclass
class Examinee(LoadedModel):
    """A loaded model that answers items. Its tower encodes a picture once for all pruners that ask the same of it."""

    max_new_tokens: int = 2  # longest answer
    _tokens: dict[tuple[Size, View], int] = field(default_factory=dict, repr=False)
    _words: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile_cache is None and family_of(self.model).encoder(self.model) is not None:
            self.tile_cache = TileCache(max_bytes=REMEMBERED)

    def check(self, items: Sequence[Item], pruners: Sequence[TokenPruner | None]) -> None:
        """Refuse what would fail in the middle of a long run.

        Raises:
            UserError: where a question holds what is no text to the model, the checkpoint has no chat template,
                or a pruner refuses the model.
        """
        self.check_pruners(pruners)
        try:
            for question in dict.fromkeys(text for item in items for text in (*item.before, item.question)):
                check_text(self.model, self.processor, question)
            make_prompt(self.model, self.processor, [Image.new("RGB", items[0].size)], items[0].question, {})
        except SettingError as error:
            raise UserError(str(error).replace("question:", "--items: in a question,")) from None

    def answers(
        self,
        items: Sequence[Item],
        pruner: TokenPruner | None = None,
        view: Callable[[Size], View] = lambda size: AS_IT_IS,
        on_batch: Callable[[int], None] = lambda items: None,
    ) -> Answers:
        """Greedy answers in the items' order, and what was left of their pictures.

        Args:
            view: how a picture of this (width, height) is shown.
            on_batch: told how many items a finished batch had.

        Raises:
            UserError: where the pruner refuses the model or a prompt, or a prompt is too long.
        """
        views = [view(item.size) for item in items]
        lengths = [self.tokens(item.size, seen) for item, seen in zip(items, views, strict=True)]
        # little padding; a conversation is asked by itself
        order = sorted(range(len(items)), key=lambda n: (views[n].options, bool(items[n].before), lengths[n]))
        kept, tiles, tokens = 0, 0.0, 0.0

        def answer(numbers: list[int]) -> list[str]:
            nonlocal kept, tiles, tokens
            if items[numbers[0]].before:
                spoken = [self._converse(items[n], views[n], pruner) for n in numbers]
            else:
                inputs = self._inputs([items[n] for n in numbers], [views[n] for n in numbers])
                options = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
                spoken = [self.generate(inputs, pruner, **options)]
            kept += sum(one.visual_tokens[1] for one in spoken)
            shares = [share for one in spoken for share in one.encoded or [(1.0, 1.0)] * len(one.texts)]
            tiles += sum(share for share, _ in shares)
            tokens += sum(share for _, share in shares)
            return [text.strip() for one in spoken for text in one.texts]

        given = self.in_batches(order, lambda n: (views[n].options, bool(items[n].before)), answer, on_batch)
        number = len(items)
        return Answers([given[n] for n in range(number)], kept / number, tiles / number, tokens / number)

    def tokens(self, size: Size, view: View = AS_IT_IS) -> int:
        """Visual tokens of a picture of this (width, height)."""
        if (size, view) not in self._tokens:
            blank = Item(Image.new("RGB", size), size, "", "?", "")
            self._tokens[size, view] = self.visual_tokens(self._inputs([blank], [view])["input_ids"])
        return self._tokens[size, view]

    def _converse(self, item: Item, view: View, pruner: TokenPruner | None) -> Generated:
        questions = [*item.before, item.question]
        return last_answer(self, _shown(item, view), questions, pruner, self.max_new_tokens, dict(view.options))

    def words(self, question: str) -> int:
        """Tokens of a prompt with this question that are not visual."""
        if question not in self._words:
            size = (SMALLEST, SMALLEST)
            ids = self._inputs([Item(Image.new("RGB", size), size, "", question, "")], [AS_IT_IS])["input_ids"]
            self._words[question] = ids.shape[1] - self.visual_tokens(ids)
        return self._words[question]

    def work(
        self,
        items: Sequence[Item],
        pruner: TokenPruner | None = None,
        view: Callable[[Size], View] = lambda size: AS_IT_IS,
    ) -> float | None:
        """Multiply-accumulates up to the first token, as a share of the unpruned model's on the same items.

        None where they cannot be counted: in a family whose shape or tiles are not known, in a conversation, or where
        the number of tokens, or what is encoded, depends on the picture.
        """
        adapts = isinstance(pruner, PyramidTokenPruning) and pruner.coverage is not None
        if adapts or (pruner is not None and pruner.leaves_out) or any(item.before for item in items):
            return None
        try:
            shape = ModelShape.from_config(self.model.config)
        except ValueError:
            return None
        prompts = [
            (self.tokens(item.size), self.tokens(item.size, view(item.size)), self.words(item.question))
            for item in items
        ]
        if any(visual % shape.tile_tokens or shown % shape.tile_tokens for visual, shown, _ in prompts):
            return None
        return share_of_unpruned(shape, prompts, pruner)

    def _inputs(self, items: Sequence[Item], views: Sequence[View]) -> Any:
        pictures = [[_shown(item, view)] for item, view in zip(items, views, strict=True)]
        asked = [ask_about(1, item.question) for item in items]
        return chat_inputs(self.processor, asked, pictures, dict(views[0].options))


def _shown(item: Item, view: View) -> Image.Image:
    picture = item.open()
    return picture.resize(view.size, Image.Resampling.BICUBIC) if view.size else picture


SMALLEST = 4  # pixels a side
STEPS = 24  # sizes tried where a model has no tiles


def has_tiles(processor: Any) -> bool:
    """Whether a processor takes the number of tiles, all of one size, as an option."""
    return "max_patches" in processor.image_processor.valid_kwargs.__annotations__


class Views:
    """Views in which a model's own processor shows less of a picture."""

    def __init__(self, examinee: Examinee) -> None:
        self.examinee = examinee
        self.image_processor = examinee.processor.image_processor

    def of(self, method: str, keep_ratio: float | None) -> Callable[[Size], View]:
        """The function from a picture's (width, height) to the view that a method shows."""
        if method == DOWNSAMPLE:
            assert keep_ratio is not None
            return partial(self._downsampled, keep_ratio=keep_ratio)
        view = View(_tiles(1), self._tile) if method == THUMBNAIL_ALONE else AS_IT_IS
        return lambda size: view

    def fewer(self, share: float) -> Callable[[Size], View]:
        """Pictures cut into fewer tiles, whose tokens come nearest to this share of all; of two as near, the more."""

        def view(size: Size) -> View:
            wanted, tokens = share * self.examinee.tokens(size), partial(self.examinee.tokens, size)
            return min(self._by_tiles(), key=lambda view: (abs(tokens(view) - wanted), -tokens(view)))

        return view

    def _by_tiles(self) -> list[View]:
        """A view for each number of tiles that the processor can be told to make at most."""
        return [View(_tiles(number)) for number in range(1, self.image_processor.max_patches + 1)]

    def _downsampled(self, size: Size, keep_ratio: float) -> View:
        """The view with the most tokens among those with at most as many as a pruner keeps.

        Where tiles can be counted: fewer tiles, and where even one tile has more tokens, a picture so much smaller in
        that tile. Otherwise a smaller picture.
        """
        full = self.examinee.tokens(size)
        budget = TokenPruner(keep_ratio=keep_ratio).num_kept(full)
        if full <= budget:
            return AS_IT_IS
        if has_tiles(self.examinee.processor):
            views = self._by_tiles()
            side = (budget / self.examinee.tokens(size, views[0])) ** 0.5
            smallest = View(_tiles(1), _scaled(self._tile, side))
        else:
            side = (budget / full) ** 0.5
            views = [View((), _scaled(size, side * 0.97**step)) for step in range(STEPS)]
            smallest = views[0]
        fitting = [view for view in views if self.examinee.tokens(size, view) <= budget]
        return max(fitting, key=lambda view: self.examinee.tokens(size, view), default=smallest)

    @property
    def _tile(self) -> Size:
        size: Any = self.image_processor.size
        return size["width"], size["height"]


def _tiles(number: int) -> tuple[tuple[str, Any], ...]:
    return (("crop_to_patches", True), ("max_patches", number))


def _scaled(size: Size, factor: float) -> Size:
    width, height = size
    return max(SMALLEST, round(width * factor)), max(SMALLEST, round(height * factor))
