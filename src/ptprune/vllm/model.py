"""Where tensors are: encodes image by image, reads the scores' raw material on the way, hands on the kept tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tp_group, tensor_model_parallel_all_reduce
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from ptprune.conventions import layer_windows
from ptprune.families.base import Model
from ptprune.families.encoded import EvidenceRequest
from ptprune.families.grid import join_by_pixels
from ptprune.families.internvl import InternVL
from ptprune.families.prompt_image import PromptImage
from ptprune.layout import ImageLayout
from ptprune.scores.attention import QueriesAndKeys, patch_scores
from ptprune.scores.evidence import EMBEDDINGS, INSTRUCTION_ROWS
from ptprune.scores.instruction import attention_rows, summarise
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
        plans: for each image what ``PLAN`` holds.
        texts: for each image what ``TEXT`` holds, or None where the question does not count.
    """

    stock: Any
    plans: list[list[int]]
    texts: list[Tensor] | None


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
        return PlannedImages(stock, kwargs[PLAN].tolist(), None if texts is None else list(texts))

    def _process_vision_input(self, image_input: Any) -> Any:
        if not isinstance(image_input, PlannedImages):
            return super()._process_vision_input(image_input)  # type: ignore[misc]
        # One by one: shorter images would let more of them into an encoder batch than its memory was measured for.
        tiles = image_input.stock[self.pixels].split([int(number) for number in image_input.stock["num_patches"]])
        texts: Sequence[Tensor | None] = image_input.texts or [None] * len(tiles)
        return tuple(self._pruned(*image) for image in zip(tiles, image_input.plans, texts, strict=True))

    def _pruned(self, pixels: Tensor, plan: list[int], text: Tensor | None) -> Tensor:
        """The features of an image's kept tokens: [tiles, 3, height, width], the thumbnail last -> [kept, D]."""
        number, num_before, num_instruction = plan
        with self._watched() as seen:
            features = self.extract_feature(pixels).flatten(0, 1)
        if number >= len(features):
            return features
        output = SimpleNamespace(last_hidden_state=seen["hidden_states"], pooler_output=features)
        tiles = ServedInternVL.encoded(self, {"pixel_values": pixels}, output, seen["attention"], self.wanted)
        columns = torch.arange(num_before, num_before + len(features), device=features.device)
        image = PromptImage.at(0, columns, join_by_pixels(tiles))
        language = {} if text is None else self._language(image.layout, features, text.to(columns), num_instruction)
        return features[self._select(number, image, language)]

    def _select(self, number: int, image: PromptImage, language: Mapping[str, Tensor]) -> Tensor:
        """LongTensor [number], sorted: the tokens that stay, the same on every rank."""
        pruner = replace(self.pruner, keep_tokens=number)
        try:
            kept = pruner.checked_select(image.evidence(0, **language)).kept
        except ValueError as error:
            # The stock model would answer nonsense to this one request; an exception here would end them all.
            logger.error("ptprune: %s. An evenly spaced choice of the image's tokens stays.", error)
            kept = torch.arange(number, device=image.layout.tokens.device) * image.layout.num_tokens // number
        # Ranks may differ in the last bit of a score, and must not differ in what they keep.
        return get_tp_group().broadcast(kept)

    @contextmanager
    def _watched(self) -> Iterator[dict[str, Any]]:
        """Read on the way, inside this block, what the vision encoder computes."""
        seen: dict[str, Any] = {"attention": {}}
        attention, ranks = self._vision_attention()

        def receive_attention(module: Any, args: tuple[Tensor, ...]) -> None:
            query, key = (x.unflatten(-1, (-1, module.head_size)).transpose(1, 2) for x in args[:2])
            qk = QueriesAndKeys(query, key, module.scale, None, None)
            for name, values in patch_scores(qk, True, self.needs).items():
                seen["attention"][name] = _mean_over(ranks, values)

        def receive_states(module: Any, args: Any, output: Tensor) -> None:
            seen["hidden_states"] = output

        with ExitStack() as hooks:
            hooks.callback(getattr(self, self.tower).register_forward_hook(receive_states).remove)
            if self.needs & {"encoder_attention", "received_attention"}:
                hooks.callback(attention.register_forward_pre_hook(receive_attention).remove)
            yield seen

    def _language(self, layout: ImageLayout, features: Tensor, text: Tensor, num_instruction: int) -> dict[str, Tensor]:
        """Name in ``ImageEvidence`` -> what the language model's embeddings or its first layer say of an image; text:
        LongTensor, token ids before and after the image, the instruction last."""
        words = self.language_model.embed_input_ids(text)
        before, after = words.tensor_split([int(layout.tokens[0])])
        if EMBEDDINGS & self.needs:
            return {"embeddings": features, "instruction_embeddings": words[len(words) - num_instruction :]}
        states = torch.cat([before, features.to(words), after])
        query, key, scaling, ranks = self._first_layer(states)
        length = len(states)
        columns = torch.arange(length, device=states.device)
        rows = columns[length - num_instruction :]
        blocks = attention_rows(query[None, :, rows], key[None], rows[None], None, None, scaling, self.window)
        means = (_mean_over(ranks, block) for block in blocks)
        summary = summarise(means, self.needs, [num_instruction], length, states.device)
        return {name: values[0][..., layout.tokens] for name, values in summary.items()}

    def _first_layer(self, states: Tensor) -> tuple[Tensor, Tensor, float, int]:
        """Run the language model's first layer on states [length, D] up to its queries and keys, which no cache gets to
        know: query [heads, length, d] and key [key_value_heads, length, d] of this rank, the scaling, and how many
        ranks share the heads."""
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
                layer(positions=torch.arange(len(states), device=states.device), hidden_states=states, residual=None)
        finally:
            hook.remove()
        query, key = shown
        return query, key, attention.impl.scale, get_tp_group().world_size


class _AttentionReached(Exception):
    """Leaves a layer that was run only for its queries and keys."""


def _mean_over(ranks: int, values: Tensor) -> Tensor:
    """The mean over all heads, from the mean over those of each rank."""
    return values if ranks == 1 else tensor_model_parallel_all_reduce(values) / ranks
