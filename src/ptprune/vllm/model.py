"""Where tensors are: encodes image by image, reads the scores' raw material on the way, hands on the kept tokens.

Where the thumbnail's attention chooses the tiles, the thumbnail is encoded first, and then the tiles that it chose. How
many they are is known, so that the host need not wait for the choice.
The tokens of all images of an encoder batch are chosen together, so that the host reads from the device once for them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group, tensor_model_parallel_all_reduce
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from ptprune.conventions import layer_windows
from ptprune.families.base import Model
from ptprune.families.encoded import EvidenceRequest, join_tiles
from ptprune.families.grid import join_by_pixels
from ptprune.families.internvl import InternVL
from ptprune.families.prompt_image import PromptImage
from ptprune.methods.pyramid import PyramidTokenPruning
from ptprune.pruner import select_each
from ptprune.scores.attention import QueriesAndKeys, patch_scores
from ptprune.scores.evidence import INSTRUCTION_ROWS, PATCH_ATTENTION, ImageEvidence
from ptprune.scores.instruction import attention_rows, summarise
from ptprune.scores.region import mean_inside
from ptprune.scores.tiles import TILE_SCORES, TileEvidence
from ptprune.selection import keep_best
from ptprune.upload import upload
from ptprune.vllm.plan import EncodingPlan, TilePlan
from ptprune.vllm.processor import PLAN, TEXT
from ptprune.vllm.settings import SETTING, check_server, pruner_of

logger = init_logger("vllm.ptprune")


class ServedInternVL(InternVL):
    """What vLLM's InternVL modules return, seen as the family that they are. vLLM builds the vision encoder only up to
    the feature layer."""

    @staticmethod
    def patch_features(model: Model, call: Mapping[str, Any], output: Any) -> Tensor:
        return output.last_hidden_state


@dataclass(frozen=True)
class PlannedImages:
    """The images of one encoder batch with their plans.

    Attributes:
        stock: as the stock model takes them.
        plans: one an image.
        texts: for each image what ``TEXT`` holds, or None where the question does not count.
    """

    stock: Any
    plans: list[EncodingPlan]
    texts: list[Tensor] | None


@dataclass(frozen=True, eq=False)
class RunOfTiles:
    """What the encoder made of some tiles of an image.

    Attributes:
        features: [tiles, tokens, D], what the stock model would hand on.
        states: [tiles, rows, d], the encoder's last hidden states, the [CLS] first, or the [CLS] alone.
        attention: name in ``ImageEvidence`` -> FloatTensor [patches of all tiles].
    """

    features: Tensor
    states: Tensor
    attention: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ServedImage:
    """An encoded image, some of whose tokens are to go.

    Attributes:
        plan: what is to be done with it.
        features: [num_tokens, D], what the stock model would hand on for the tiles that were encoded.
        prompt_image: its evidence.
        text: see ``TEXT``; None where the question does not count.
    """

    plan: EncodingPlan
    features: Tensor
    prompt_image: PromptImage
    text: Tensor | None


class PrunedModel:
    """Mixin in front of a stock InternVL model."""

    #: Name of the tiles' pixels in the stock model's image input, and of its vision encoder.
    pixels: str
    tower: str

    config: Any
    language_model: Any
    extract_feature: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        pruner = pruner_of(getattr(vllm_config.model_config.hf_config, SETTING))
        check_server(vllm_config, pruner.guided)
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.pruner, self.needs = pruner, pruner.needs
        self.wanted = EvidenceRequest(pruner.needs, None)
        if INSTRUCTION_ROWS & pruner.needs:
            self.window = layer_windows(vllm_config.model_config.hf_text_config)[0]

    @abstractmethod
    def _vision_attention(self) -> tuple[nn.Module, int]:
        """(the attention function's module in the encoder's last layer, how many ranks share its heads)."""

    def _parse_and_validate_image_input(self, **kwargs: Any) -> Any:
        stock = super()._parse_and_validate_image_input(**kwargs)  # type: ignore[misc]
        if PLAN not in kwargs:  # no image, or embeddings from the client
            return stock
        texts = kwargs.get(TEXT)
        return PlannedImages(stock, EncodingPlan.read(kwargs[PLAN]), None if texts is None else list(texts))

    def _process_vision_input(self, image_input: Any) -> Any:
        if not isinstance(image_input, PlannedImages):
            return super()._process_vision_input(image_input)  # type: ignore[misc]
        # One by one: shorter images would let more of them into an encoder batch than its memory was measured for.
        tiles = image_input.stock[self.pixels].split(image_input.stock["num_patches"].tolist())
        texts: Sequence[Tensor | None] = image_input.texts or [None] * len(tiles)
        images = [self._encoded(*each) for each in zip(tiles, image_input.plans, texts, strict=True)]
        pruned = [image for image in images if isinstance(image, ServedImage)]
        kept = iter(self._select(pruned, self._language(pruned)))
        return tuple(image.features[next(kept)] if isinstance(image, ServedImage) else image for image in images)

    def _encoded(self, pixels: Tensor, plan: EncodingPlan, text: Tensor | None) -> ServedImage | Tensor:
        """Encode an image, [tiles, 3, height, width], the thumbnail last; its features [num_tokens, D] if all that are
        encoded stay."""
        tiles, chosen = plan.tiles, None
        if tiles is not None and tiles.chosen_by_model:
            pixels, chosen, run = self._thumbnail_first(pixels, tiles)
        else:
            run = self._run(pixels, self.needs)
        features = run.features.flatten(0, 1)
        if plan.keep >= len(features):
            return features
        output = SimpleNamespace(last_hidden_state=run.states, pooler_output=features)
        encoded = ServedInternVL.encoded(self, {"pixel_values": pixels}, output, run.attention, self.wanted)
        if tiles is None:
            columns = torch.arange(plan.num_before, plan.num_before + len(features), device=features.device)
            return ServedImage(plan, features, PromptImage.at(0, columns, join_by_pixels(encoded)), text)
        if chosen is None:
            chosen = upload(np.array(tiles.given, np.int64), features.device)
        image = join_tiles(encoded, "last", cache(lambda: tiles.places(chosen.tolist())))
        columns = plan.num_before + tiles.columns(chosen, run.features.shape[1])
        return ServedImage(plan, features, PromptImage.at(0, columns, image), text)

    def _thumbnail_first(self, pixels: Tensor, plan: TilePlan) -> tuple[Tensor, Tensor, RunOfTiles]:
        """Encode an image's thumbnail, and the tiles that it chooses.

        Returns:
            The pixels of what was encoded, the numbers of the tiles among it (LongTensor), and what became of it.
        """
        tiles, thumbnail = pixels[:-1], pixels[-1:]
        looked = self._run(thumbnail, self.needs | {"encoder_attention"})

        def seen() -> Tensor:
            paid = looked.attention["encoder_attention"]
            side = round(len(paid) ** 0.5)
            return mean_inside(paid.view(side, side), plan.places(plan.given)[:-1])

        scores = TILE_SCORES[self.pruner.tile_score].compute(TileEvidence(tiles, seen))
        # Ranks may differ in the last bit of a score, and must not differ in what they encode.
        chosen = get_tp_group().broadcast(keep_best(scores.double(), plan.number))
        pixels = torch.cat([tiles.index_select(0, chosen), thumbnail])
        return pixels, chosen, self._joined([self._run(pixels[:-1], self.needs), looked])

    def _run(self, pixels: Tensor, names: frozenset[str]) -> RunOfTiles:
        """Encode tiles, at most ``tile_batch`` at a time.

        Args:
            names: the evidence that is wanted of the encoder's attention.
        """
        most = self.pruner.tile_batch
        runs, groups = [], [pixels] if most is None or most >= len(pixels) else pixels.split(most)
        for group in groups:
            with self._watched(names) as seen:
                features = self.extract_feature(group)
            states = seen["hidden_states"]
            # a copy, or these few rows would hold on to the others while the next group is encoded
            states = states if len(groups) == 1 else states[:, : self._rows].clone()
            runs.append(RunOfTiles(features, states, seen["attention"]))
        return self._joined(runs)

    def _joined(self, runs: Sequence[RunOfTiles]) -> RunOfTiles:
        """Several runs as one, with the evidence that the method wants."""
        if len(runs) == 1:
            return runs[0]
        names = runs[0].attention
        return RunOfTiles(
            torch.cat([run.features for run in runs]),
            torch.cat([run.states[:, : self._rows] for run in runs]),
            {name: torch.cat([run.attention[name] for run in runs]) for name in names},
        )

    @property
    def _rows(self) -> int | None:
        """How many of a tile's hidden states the method wants, the [CLS] first; None: all."""
        return None if "token_features" in self.needs else 1

    def _select(self, images: Sequence[ServedImage], language: Sequence[Mapping[str, Tensor]]) -> Sequence[Tensor]:
        """For each image a LongTensor, sorted: the tokens that stay, the same on every rank."""
        if not images:
            return []
        choices = [
            (replace(self.pruner, keep_tokens=image.plan.keep), image.prompt_image.evidence(said))
            for image, said in zip(images, language, strict=True)
        ]
        try:
            kept = [selection.kept for selection in select_each(choices)]
        except ValueError:  # of one image; whose it is shows when each is asked alone
            kept = [_kept_alone(*choice) for choice in choices]
        # Ranks may differ in the last bit of a score, and must not differ in what they keep.
        return get_tp_group().broadcast(torch.cat(kept)).split([len(each) for each in kept])

    @contextmanager
    def _watched(self, names: frozenset[str]) -> Iterator[dict[str, Any]]:
        """Read on the way, inside this block, what the vision encoder computes: its last hidden states, and what is
        named of its attention."""
        seen: dict[str, Any] = {"attention": {}}
        attention, ranks = self._vision_attention()

        def receive_attention(module: Any, args: tuple[Tensor, ...]) -> None:
            query, key = (x.unflatten(-1, (-1, module.head_size)).transpose(1, 2) for x in args[:2])
            qk = QueriesAndKeys(query, key, module.scale, None, None)
            for name, values in patch_scores(qk, True, names).items():
                seen["attention"][name] = _mean_over(ranks, values)

        def receive_states(module: Any, args: Any, output: Tensor) -> None:
            seen["hidden_states"] = output

        with ExitStack() as hooks:
            hooks.callback(getattr(self, self.tower).register_forward_hook(receive_states).remove)
            if names & PATCH_ATTENTION:
                hooks.callback(attention.register_forward_pre_hook(receive_attention).remove)
            yield seen

    def _language(self, images: Sequence[ServedImage]) -> list[dict[str, Tensor]]:
        """For each image, by name in ``ImageEvidence``, what the language model's embeddings or its first layer say of
        it."""
        said = [{"embeddings": image.features} if "embeddings" in self.needs else {} for image in images]
        texts = [image.text for image in images if image.text is not None]
        if not texts:
            return said
        ids = torch.cat(texts).to(images[0].features.device)  # uploaded and looked up once for all images
        words = self.language_model.embed_input_ids(ids).split([len(text) for text in texts])
        return [seen | self._paid(image, mine) for seen, image, mine in zip(said, images, words, strict=True)]

    def _paid(self, image: ServedImage, words: Tensor) -> dict[str, Tensor]:
        """What the words around an image, [text, D], say of it, the instruction last."""
        features, number, before = image.features, image.plan.num_instruction, image.plan.num_before
        if "instruction_embeddings" in self.needs:
            return {"instruction_embeddings": words[len(words) - number :]}
        states = torch.cat([words[:before], features.to(words), words[before:]])
        length = len(states)
        columns = self._columns(image, length)
        query, key, scaling, ranks = self._first_layer(states, columns)
        blocks = attention_rows(
            query[None, :, length - number :],
            key[None],
            columns[None, length - number :],
            columns[None],
            None,
            scaling,
            self.window,
        )
        means = (_mean_over(ranks, block) for block in blocks)
        summary = summarise(means, self.needs, [number], length, states.device)
        return {name: values[0][..., before : before + len(features)] for name, values in summary.items()}

    @staticmethod
    def _columns(image: ServedImage, length: int) -> Tensor:
        """LongTensor [length], where an image's tokens and the text around it stand in the unpruned prompt."""
        tokens, plan = image.prompt_image.layout.tokens, image.plan
        if plan.tiles is None:
            return torch.arange(length, device=tokens.device)
        ahead = torch.arange(plan.num_before, device=tokens.device)
        behind = torch.arange(1, length - plan.num_before - len(tokens) + 1, device=tokens.device)
        return torch.cat([ahead, tokens, tokens[-1] + behind])  # the thumbnail is the picture's end

    def _first_layer(self, states: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, float, int]:
        """Run the language model's first layer on states [length, D] in these columns, up to its queries and keys,
        which no cache gets to know: query [heads, length, d] and key [key_value_heads, length, d] of this rank, the
        scaling, and how many ranks share the heads."""
        layer = self.language_model.model.layers[0]
        attention = next(module for module in layer.modules() if isinstance(module, Attention))
        shown = []

        def receive_and_leave(module: Any, args: tuple[Tensor, ...]) -> None:
            query, key = (x.unflatten(-1, (-1, module.head_size)).transpose(0, 1) for x in args[:2])
            shown.extend([query, key])
            raise _AttentionReached

        hook = attention.register_forward_pre_hook(receive_and_leave)
        try:
            with suppress(_AttentionReached):
                layer(positions=columns, hidden_states=states, residual=None)
        finally:
            hook.remove()
        query, key = shown
        return query, key, attention.impl.scale, get_tp_group().world_size


class _AttentionReached(Exception):
    """Leaves a layer that was run only for its queries and keys."""


def _kept_alone(pruner: PyramidTokenPruning, evidence: ImageEvidence) -> Tensor:
    """The kept tokens of an image that may hold values that are not finite."""
    try:
        return pruner.checked_select(evidence).kept
    except ValueError as error:
        # The stock model would answer nonsense to this one request; an exception here would end them all.
        logger.error("ptprune: %s. An evenly spaced choice of the image's tokens stays.", error)
        number = evidence.layout.num_tokens
        kept = pruner.num_kept(number)
        return torch.arange(kept, device=evidence.device) * number // kept


def _mean_over(ranks: int, values: Tensor) -> Tensor:
    """The mean over all heads, from the mean over those of each rank."""
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks
