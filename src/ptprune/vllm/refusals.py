"""Servers that a pruner does not fit: refused before any weight is loaded, one line each."""

from __future__ import annotations

from typing import Any


def check_server(vllm_config: Any, guided: bool) -> None:
    """Refuse a configuration in which pruning would not happen, or not right.

    Args:
        guided: whether the question counts.

    Raises:
        ValueError: naming the option and what to do instead.
    """
    multimodal, compilation = vllm_config.model_config.multimodal_config, vllm_config.compilation_config
    question = "or leave the question out ('instruction': 'none')"
    refused = {
        "CUDA graphs of the vision encoder replay without looking at it: turn cudagraph_mm_encoder off": (
            compilation.cudagraph_mm_encoder
        ),
        "a compiled vision encoder hides its attention: turn compile_mm_encoder off": compilation.compile_mm_encoder,
        "--mm-encoder-tp-mode data shares out an image's tiles, which are compared here: use 'weights'": (
            multimodal.mm_encoder_tp_mode == "data"
        ),
        f"--mm-encoder-only has no language model to read the question: serve all of it, {question}": (
            guided and multimodal.mm_encoder_only
        ),
        f"LoRA adapters change the layer that reads the question: serve without --enable-lora, {question}": (
            guided and vllm_config.lora_config is not None
        ),
        "LoRA adapters of the vision encoder count unpruned tokens: turn enable_tower_connector_lora off": (
            vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora
        ),
    }
    for reason, holds in refused.items():
        if holds:
            raise ValueError(f"ptprune: {reason}")
