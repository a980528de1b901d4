"""A loaded model with its processor: answers batches of prompts, with or without pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch

from ptprune.asking.chat import check_length
from ptprune.attach.tile_cache import TileCache
from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.processor import tile_options
from ptprune.errors import PtpruneError, SettingError, first_line
from ptprune.families import family_of
from ptprune.pruner import TokenPruner
from ptprune.report import PruningReport


@contextmanager
def whose_fault(model: Any, inputs: Any) -> Iterator[None]:
    """Errors inside that the stock model makes too, without a pruner and on the same inputs, are its checkpoint's.

    Raises:
        SettingError: for those; all others come through as they are.
    """
    try:
        yield
    except PtpruneError:
        raise
    except Exception:
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            told = f"it cannot read this prompt, pruned or not ({type(error).__name__}: {first_line(error)})"
            raise SettingError(f"model: {told}; give a checkpoint whose files belong together") from error
        raise


class Generated(NamedTuple):
    """Answers to a batch of prompts."""

    texts: list[str]  # one a prompt
    visual_tokens: tuple[int, int]  # before and after pruning, over the whole batch
    encoded: Sequence[tuple[float, float]] = ()  # of each picture the shares of its tiles and tokens; empty: all

    @classmethod
    def of(cls, texts: list[str], visual: int, pruner: TokenPruner | None) -> Generated:
        """Answers to prompts of so many visual tokens, and what the last prefill with the pruner left of them."""
        if pruner is None or not visual:
            return cls(texts, (visual, visual))
        assert pruner.report is not None
        before, after = pruner.report.visual_tokens
        return cls(texts, (visual, visual - before + after), shares_encoded(pruner.report))


def shares_encoded(report: PruningReport) -> list[tuple[float, float]]:
    """Of each picture the shares of its tiles and of its tokens that were encoded."""
    return [
        (image.encoded_tiles / len(image.regions), image.encoded_tokens / image.num_tokens) for image in report.images
    ]


@dataclass
class LoadedModel:
    """A model on its device and its processor, which pads on the left from now on."""

    model: Any
    processor: Any
    batch: int = 16  # prompts a batch
    image_options: dict[str, Any] = field(default_factory=dict)  # of the image processor, instead of its own
    tile_cache: TileCache | None = None  # what pruners share, where the same pictures come again and again

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: str,
        *,
        attention: str | None = None,
        batch: int = 16,
        max_tiles: int | None = None,
    ) -> LoadedModel:
        """A checkpoint's model and processor.

        Args:
            dtype: one of ``DTYPES``.
            attention: attention implementation; None for the model's own choice.
            max_tiles: most tiles a picture, thumbnail not counted; None for the checkpoint's own choice.

        Raises:
            SettingError: for anything that is missing or does not fit.
        """
        processor = checkpoint.processor()
        options = tile_options(checkpoint.family.name, processor, max_tiles)  # refused before the weights are read
        return cls(checkpoint.model(device, dtype, attention), processor, batch, options)

    def __post_init__(self) -> None:
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin where prompts end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def encodes_apart(self) -> bool:
        """Whether the model encodes tiles apart from each other, so that some can be left out."""
        return family_of(self.model).encoder(self.model) is not None

    def sparing(self, pruner: TokenPruner) -> TokenPruner:
        """``pruner.sparing()``, where the model encodes tiles apart."""
        return pruner.sparing() if self.encodes_apart else pruner

    def check_pruners(self, pruners: Sequence[TokenPruner | None]) -> None:
        """Attach every pruner once. Raises PtpruneError where one refuses the model."""
        for pruner in pruners:
            with self.attached(pruner):
                pass

    def attached(self, pruner: TokenPruner | None) -> AbstractContextManager[Any]:
        """The block in which the model prunes like this."""
        return nullcontext() if pruner is None else pruner(self.model, tile_cache=self.tile_cache)

    def in_batches(
        self,
        order: Sequence[int],
        alike: Callable[[int], Any],
        answer: Callable[[list[int]], list[str]],
        on_batch: Callable[[int], None],
    ) -> dict[int, str]:
        """Number of a prompt -> its answer.

        Args:
            order: in which they are asked.
            alike: of a number, the same for all of a batch; ``order`` is sorted by it.
            answer: what answers a batch.
            on_batch: told how many prompts a finished batch had.
        """
        answers: dict[int, str] = {}
        for _, group in groupby(order, key=alike):
            numbers = list(group)
            for start in range(0, len(numbers), self.batch):
                batch = numbers[start : start + self.batch]
                answers |= zip(batch, answer(batch), strict=True)
                on_batch(len(batch))
        return answers

    def generate(self, inputs: Any, pruner: TokenPruner | None = None, **options: Any) -> Generated:
        """Answers to a batch of prompts.

        Args:
            inputs: of ``chat_inputs``.
            options: of the model's ``generate()``, "max_new_tokens" among them.

        Raises:
            PtpruneError: where the prompts are too long, or the pruner refuses the model or a prompt.
        """
        check_length(self.model, inputs, options["max_new_tokens"])
        inputs = inputs.to(self.model.device)
        with whose_fault(self.model, inputs), self.attached(pruner), torch.no_grad():
            output = self.model.generate(**inputs, **options)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return Generated.of(texts, self.visual_tokens(inputs["input_ids"]), pruner)

    def visual_tokens(self, input_ids: torch.Tensor) -> int:
        """Number of token ids that stand for a part of a picture."""
        return int((input_ids == self.model.config.image_token_id).sum())
