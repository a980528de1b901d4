"""The model and its tokenizer, before any training: a stock InternVL of about two million parameters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from ptprune.checkpoints.image_only import image_only
from ptprune.tiny.world import COLOURS, DIGITS, KEYS, KINDS, LETTERS, SHAPES, TILE, VALUES

PATCH = 8
TOKENS = (TILE // PATCH // 2) ** 2
"""LLM tokens of one tile."""
VISION_WIDTH = 160
TEXT_WIDTH = 160
TEXT_LAYERS = 4

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
SPECIAL = (PAD, END, USER, ASSISTANT, IMAGE_START, IMAGE_END, IMAGE, VIDEO)

# Contents come as strings or as lists of parts. A turn's text starts with a space, so that a word is the same token
# in a question, in an answer and in a caption.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{%- if message['content'] is string -%}"
    "{{ ' ' + message['content'] | trim }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<IMG_CONTEXT>' }}"
    "{%- elif part['type'] == 'text' -%}{{ ' ' + part['text'] | trim }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
LIST = "list everything."
PRINTED = ("key", "value")
"""Kinds of what stands on pages, beside the kinds of objects in scenes."""
NOTHING = "nothing"


def words() -> list[str]:
    """Every word of the world; each must be one token with its leading space."""
    frames = "which is what colour the how many are there a next to list everything nothing yes no of has stands below"
    kinds = [*KINDS, *PRINTED]
    plurals = [f"{kind}s" for kind in kinds]
    return [*frames.split(), *kinds, *plurals, *COLOURS, *DIGITS, *LETTERS, *SHAPES, *KEYS, *VALUES]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows the world's words whole and spells out everything else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + word for word in words()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE,
            "video_token": VIDEO,
        },
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    for word in words():
        if len(fast(" " + word)["input_ids"]) != 1:
            raise RuntimeError(f"{word!r} is not one token")
    return fast


def build_image_processor() -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=12
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    return image_only(InternVLProcessor)(
        image_processor=build_image_processor(),
        tokenizer=tokenizer,
        image_seq_length=TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, layers: int = TEXT_LAYERS
) -> InternVLForConditionalGeneration:
    """A fresh model whose language model has ``layers`` layers."""
    torch.manual_seed(seed)
    vision = InternVLVisionConfig(
        hidden_size=VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=5,
        intermediate_size=512,
        attention_bias=True,
        image_size=TILE,
        patch_size=PATCH,
        layer_scale_init_value=0.5,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=448,
        num_hidden_layers=layers,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        embeddings = model.model.vision_tower.embeddings
        embeddings.position_embeddings.normal_(std=0.05)
        embeddings.cls_token.normal_(std=0.05)
        model.get_input_embeddings().weight.normal_(std=TEXT_WIDTH**-0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=32
    )
    return model


def deepen(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Put ``layers`` layers below the language model's: copies of its first whose outputs start at zero.

    What the model computes stays the same; training goes on from there.
    """
    deeper = {}
    for name, value in state.items():
        parts = name.split(".")
        if "language_model.layers" not in name:
            deeper[name] = value
            continue
        at = parts.index("layers") + 1
        number = int(parts[at])
        places = [*range(layers), layers] if number == 0 else [number + layers]
        for place in places:
            silent = place < layers and ("o_proj" in name or "down_proj" in name)
            parts[at] = str(place)
            deeper[".".join(parts)] = torch.zeros_like(value) if silent else value.clone()
    return deeper


def shallow(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Leave out the lowest ``layers`` layers of the language model."""
    left = {}
    for name, value in state.items():
        parts = name.split(".")
        if "language_model.layers" in name:
            at = parts.index("layers") + 1
            if int(parts[at]) < layers:
                continue
            parts[at] = str(int(parts[at]) - layers)
        left[".".join(parts)] = value
    return left


def grow(
    state: dict[str, torch.Tensor], old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast
) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint for a larger vocabulary: tokens keep their rows, new ones get random rows.

    Random rows are about as long as those of trained words.
    """
    name = "model.language_model.embed_tokens.weight"
    rows, known = state[name], old.get_vocab()
    table = torch.randn(len(new), rows.shape[1]) * 0.11
    for token, index in new.get_vocab().items():
        if token in known:
            table[index] = rows[known[token]]
    return {n: table if n in (name, "lm_head.weight") else value for n, value in state.items()}


def is_language_layer(name: str) -> bool:
    """Whether a parameter belongs to the language model without its word embeddings."""
    return "language_model.layers" in name or "language_model.norm" in name


def save(model: InternVLForConditionalGeneration, directory: Path) -> None:
    """Write everything that a stock ``from_pretrained`` of model, tokenizer and processor reads."""
    tokenizer = build_tokenizer()
    model.save_pretrained(directory)
    build_processor(tokenizer).save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    # Where torchvision is installed, the stock AutoProcessor wants a video processor too.
    video = {
        "video_processor_type": "InternVLVideoProcessor",
        "processor_class": "InternVLProcessor",
        "size": {"height": TILE, "width": TILE},
    }
    (directory / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
