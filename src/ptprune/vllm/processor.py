"""Where requests come in: how many tokens of each image stay, by which text, and the prompt that is shorter for it.

Tiles that are left out by their pixels end here: neither their pixels nor a placeholder for them goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from ptprune.scores.evidence import INSTRUCTION_ROWS
from ptprune.vllm.plan import EncodingPlan, plan_tiles
from ptprune.vllm.settings import SETTING, num_kept, pruner_of, requested, tile_limits
from ptprune.vllm.turn import ImageText, answer_start, texts_around

logger = init_logger("vllm.ptprune")

# Fields that travel with an image to the model.
PLAN = "ptprune_plan"  # LongTensor, see ``EncodingPlan``
TEXT = "ptprune_text"  # LongTensor [text]: the text before the image and after it


@dataclass(frozen=True)
class ImagePlan:
    """What decides, beside its pixels, which tokens of an image stay.

    Attributes:
        ratio: what the request asks for, or None for the server's own.
        limits: which tiles are encoded, see ``tile_limits``.
        text: around the image; None where the question does not count.
    """

    ratio: float | None
    limits: list[tuple[str | int, float]]
    text: ImageText | None

    def digest(self, settings: Mapping[str, Any]) -> str:
        said = json.dumps([settings, asdict(self)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


class PrunedProcessor:
    """Mixin in front of a model's stock processor.

    Plans travel through the stock methods under "ptprune" in the processor arguments, which the stock code never sees:
    every method that is given them takes them out first.
    """

    #: What the stock processor calls its visual token, and its pixels.
    visual_token: str
    pixels: str

    info: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = getattr(self.info.get_hf_config(), SETTING)
        self.pruner = pruner_of(self.settings)
        if SETTING in (self.info.ctx.get_mm_config().mm_processor_kwargs or {}):
            raise ValueError("ptprune: the server's own settings belong in --hf-overrides '{\"ptprune\": {...}}'")

    @cached_property
    def _answer(self) -> list[int]:
        answer = answer_start(self.info.get_tokenizer())
        if not answer:
            logger.warning(
                "ptprune: the tokenizer's chat template does not say where answers begin. All text after a picture "
                "counts as the question about it, so that a later question misses the picture's caches."
            )
        return answer

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """The blank pictures with which vLLM measures what the largest ones take."""
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, SETTING: _LARGEST})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        stock, asked = _taken_out(inputs.hf_processor_mm_kwargs)
        request = requested(self.pruner, None if asked is _LARGEST else asked)
        limits = tile_limits(self.pruner, request)
        if asked is _LARGEST:  # a blank tile needs not be encoded, but those of another picture may
            limits = [limit for limit in limits if limit[0] != "salient"]
        inputs = replace(inputs, hf_processor_mm_kwargs=stock)
        images = inputs.mm_data_items.get("image")
        if isinstance(images, ImageProcessorItems) and len(images):
            plans = [ImagePlan(request.ratio, limits, text) for text in self._texts(inputs, len(images))]
            inputs = replace(inputs, hf_processor_mm_kwargs={**stock, SETTING: plans})
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _texts(self, inputs: Any, images: int) -> Sequence[ImageText | None]:
        """The text around each image that the method wants to know."""
        if not self.pruner.guided:
            return [None] * images
        prompt, placeholders = self._with_single_tokens(inputs)
        spans = {modality: [*map(_embedded, found)] for modality, found in placeholders.items()}
        visual = [span for found in spans.values() for span in found]
        texts = texts_around(prompt, visual, spans["image"], self._answer)
        return texts if INSTRUCTION_ROWS & self.pruner.needs else [text.instruction_alone for text in texts]

    def _with_single_tokens(self, inputs: Any) -> tuple[list[int], Mapping[str, Any]]:
        """The prompt as it will be, but with one visual token for each image and video: nothing is processed yet."""
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items=inputs.mm_data_items,
            hf_processor_mm_kwargs=inputs.hf_processor_mm_kwargs,
            out_mm_kwargs=MultiModalKwargsItems({}),
        )
        names = ("start_image_token_id", self.visual_token, "end_image_token_id")
        single = [getattr(self.info.get_hf_processor(), name) for name in names]
        details = PromptUpdateDetails.select_token_id(single, single[1])
        short = [PromptReplacement(update.modality, update.target, replacement=details) for update in updates]
        bound = self._bind_and_group_updates(short, inputs.mm_data_items.get_all_counts())  # type: ignore[attr-defined]
        return self._apply_prompt_updates(list(inputs.prompt), bound)  # type: ignore[attr-defined]

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        """The stock hashes, and for each image that of its plan: another ratio or question is another image."""
        stock, plans = _taken_out(inputs.hf_processor_mm_kwargs)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=stock))  # type: ignore[misc]
        if plans:
            digests = [plan.digest(self.settings) for plan in plans]
            hashes["image"] = [f"{own}-{plan}" for own, plan in zip(hashes["image"], digests, strict=True)]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        stock, plans = _taken_out(inputs.hf_processor_mm_kwargs)
        inputs = replace(inputs, hf_processor_mm_kwargs=stock)
        stock = super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)  # type: ignore[misc]
        if not plans:
            return stock
        cached = mm_is_cached["image"]
        return {**stock, SETTING: [plan for plan, known in zip(plans, cached, strict=True) if not known]}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        stock, plans = _taken_out(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, stock)  # type: ignore[misc]
        if plans:
            texts = [plan.text or ImageText() for plan in plans]
            tile = self.info.get_hf_processor(**stock).image_seq_length
            images = data[self.pixels].split(data["image_num_patches"].tolist())
            tiles = [plan_tiles(self.pruner, plan.limits, image) for plan, image in zip(plans, images, strict=True)]
            data[PLAN] = []
            for plan, text, image, which in zip(plans, texts, images, tiles, strict=True):
                encoded = len(image) if which is None else which.number + 1
                keep = num_kept(self.pruner, plan.ratio, len(image) * tile, encoded * tile)
                data[PLAN].append(EncodingPlan(keep, len(text.before), text.num_instruction, which).write())
            if self.pruner.guided:
                data[TEXT] = [torch.tensor(text.before + text.after) for text in texts]
            if any(which is not None and not which.chosen_by_model for which in tiles):
                given = [
                    image if which is None or which.chosen_by_model else image[[*which.given, -1]]
                    for image, which in zip(images, tiles, strict=True)
                ]
                data[self.pixels] = torch.cat(given)
                data["image_num_patches"] = torch.tensor([len(image) for image in given])
        return data

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        stock, _ = _taken_out(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, stock)  # type: ignore[misc]
        own = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (PLAN, TEXT)}
        return {**fields, **own}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        stock, _ = _taken_out(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, stock, out_mm_kwargs)  # type: ignore[misc]
        plans = out_mm_kwargs.get_data().get(PLAN)
        if plans is None:
            return updates
        kept = [int(plan[0]) for plan in plans]
        return [_shortened(update, kept) if update.modality == "image" else update for update in updates]


_LARGEST = object()  # in the place of what a request asks for; no request can hold it


def _taken_out(kwargs: Mapping[str, object]) -> tuple[dict[str, object], Any]:
    """Processor arguments without ours, and ours."""
    stock = dict(kwargs)
    return stock, stock.pop(SETTING, None)


def _embedded(placeholder: Any) -> range:
    """Where the single visual token of a placeholder stands."""
    at = placeholder.start_idx + int(placeholder.is_embed.nonzero()[0, 0])
    return range(at, at + 1)


def _shortened(update: Any, kept: Sequence[int]) -> PromptReplacement:
    """A prompt update that puts as many visual tokens for each image as are kept."""

    def content(item: int) -> PromptUpdateDetails:
        details = update.resolve(item).content
        visual = details.is_embed(details.full)
        keep = ~visual | (visual.cumsum(0) <= kept[item])
        return replace(details, full=[token for token, stays in zip(details.full, keep.tolist(), strict=True) if stays])

    return PromptReplacement(update.modality, update.target, replacement=content)
