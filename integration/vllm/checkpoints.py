"""Checkpoints for the tests: the shipped one in OpenGVLab's own format, and a small random one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ptprune.tiny import CHECKPOINT

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PROCESSOR = ("processor_config.json", "video_preprocessor_config.json")

# The format's configuration is code that comes with a checkpoint.
CONFIGURATION = """
from transformers import PretrainedConfig, Qwen2Config


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    has_no_defaults_at_init = True

    def __init__(self, vision_config=None, llm_config=None, **kwargs):
        super().__init__(**kwargs)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
"""


def small_random(directory: Path) -> str:
    """A random InternVL with 4 heads in both towers; the shipped tokenizer and pictures' sizes."""
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": [64, 64],
            "patch_size": [8, 8],
            "layer_scale_init_value": 1.0,
            "attention_bias": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 640,  # no fewer than the shipped tokenizer has
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": 1,
            "max_position_embeddings": 4096,
        },
        image_token_id=6,
        image_seq_length=16,
    )
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():  # sharpen: the default initialisation leaves attention uniform and every score a tie
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 if "norm" not in name else parameter)
    model.save_pretrained(directory)
    for name in (*TOKENIZER, *PROCESSOR):
        shutil.copy(CHECKPOINT / name, directory)
    return str(directory)


def overflowing(directory: Path) -> str:
    """The shipped checkpoint with a vision encoder whose last layer gives no number."""
    shutil.copytree(CHECKPOINT, directory)
    weights = load_file(CHECKPOINT / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.layer.3.attention.q_proj.bias"))
    weights[name] = torch.full_like(weights[name], torch.inf)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


def in_chat_format(source: Path | str, directory: Path) -> str:
    """The same weights as an ``InternVLChatModel``, with a tokenizer that, as Qwen's, joins ">" and a line's end, so
    that "<image>" is not found among a prompt's tokens."""
    source = Path(source)
    directory.mkdir()
    config = json.loads((source / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    chat = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "vision_config": {
            **{name: vision[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
            **{name: vision[name] for name in ("intermediate_size", "hidden_act", "layer_norm_eps", "norm_type")},
            "image_size": vision["image_size"][0],
            "patch_size": vision["patch_size"][0],
            "qkv_bias": True,
            "qk_normalization": False,
            "initializer_factor": 1.0,
        },
        "llm_config": {
            **text,
            "architectures": ["Qwen2ForCausalLM"],
            "tie_word_embeddings": config["tie_word_embeddings"],
        },
        "force_image_size": vision["image_size"][0],
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(chat))
    (directory / "configuration_internvl_chat.py").write_text(CONFIGURATION)
    save_file(_renamed(load_file(source / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})
    for name in TOKENIZER:
        shutil.copy(source / name, directory)
    _join_line_ends(directory / "tokenizer.json")
    return str(directory)


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    qkv = ("q_proj", "k_proj", "v_proj")
    names = {
        "multi_modal_projector.layer_norm": "mlp1.0",
        "multi_modal_projector.linear_1": "mlp1.1",
        "multi_modal_projector.linear_2": "mlp1.3",
        "vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
        "vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
        "vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
        "vision_tower.encoder.layer.": "vision_model.encoder.layers.",
        "attention.projection_layer": "attn.proj",
        "attention.q_proj": "attn.qkv",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "lambda_": "ls",
        "lm_head": "language_model.lm_head",
    }
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("vision_tower") and any(part in name for part in qkv):
            if "q_proj" not in name:
                continue
            tensor = torch.cat([weights[name.replace("q_proj", part)] for part in qkv])
        for old, new in names.items():
            if not name.startswith("language_model"):
                name = name.replace(old, new)
        renamed[name] = tensor.contiguous()
    return renamed


def _join_line_ends(path: Path) -> None:
    """Give the last merge of the vocabulary's to ">" and a line's end."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    first, second = model["merges"].pop()
    model["vocab"][">Ċ"] = model["vocab"].pop(first + second)
    model["merges"].append([">", "Ċ"])
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
