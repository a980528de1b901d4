"""The counts of ``cost`` against published figures and against torch's own counter on a stock model."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from ptprune import PyramidTokenPruning, RandomPruning, TokenPruner
from ptprune.cost import (
    Encoding,
    Prompt,
    decode_macs,
    head_macs,
    kept_tokens,
    kv_bytes,
    prefill_macs,
    projector_macs,
    pruned_cost,
    select_macs,
    unpruned_cost,
    vision_macs,
)
from ptprune.methods.pyramid import PaperTokenPruning
from ptprune.shapes import SHAPES, ModelShape

IMAGE_TOKEN = 7


def test_internvl2_2b_prefill_as_published() -> None:
    """The PTP paper: InternVL2-2B, 12 tiles, 6.40 T "FLOPs" unpruned (they are multiply-accumulates)."""
    shape = SHAPES["internvl2-2b"]
    prompt = Prompt(tiles=12, text_tokens=133)
    trillions = [
        unpruned_cost(shape, prompt).prefill / 1e12,
        pruned_cost(shape, prompt, 0.5, layer=0).prefill / 1e12,
        pruned_cost(shape, prompt, 0.5, layer=2).prefill / 1e12,
    ]
    assert [round(value, 2) for value in trillions] == [6.40, 3.03, 3.31]


def test_internvl2_2b_cache_as_published() -> None:
    shape = SHAPES["internvl2-2b"]
    prompt = Prompt(tiles=12, text_tokens=136)
    assert kv_bytes(shape.text, 1) == 96 * 1024
    assert round(unpruned_cost(shape, prompt).kv_bytes / 2**20) == 325
    assert round(pruned_cost(shape, prompt, 0.5, layer=2).kv_bytes / 2**20) == 169


def tiny_model(text_config: Qwen2Config | Qwen3Config) -> InternVLForConditionalGeneration:
    vision = InternVLVisionConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, image_size=32, patch_size=8
    )
    config = InternVLConfig(
        vision_config=vision, text_config=text_config, image_token_id=IMAGE_TOKEN, image_seq_length=4
    )
    torch.manual_seed(0)
    return InternVLForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def tiny_llava() -> LlavaNextForConditionalGeneration:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=40,
            image_size=32,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=56,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=[[64, 64]],
    )
    torch.manual_seed(0)
    return LlavaNextForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


DECODERS = {
    "grouped-query": Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "heads wider than the model": Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
    ),
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS.keys())
def test_counts_equal_torchs_counter(decoder: Qwen2Config | Qwen3Config) -> None:
    model = tiny_model(decoder)
    shape = ModelShape.from_config(model.config)
    prompt = Prompt(tiles=2, text_tokens=9)
    visual = prompt.encoded * shape.tile_tokens
    assert shape.tile_tokens == 4
    input_ids = torch.tensor([[1] * 4 + [IMAGE_TOKEN] * visual + [2] * 5])
    counter = FlopCounterMode(display=False, depth=None)
    with counter, torch.no_grad():
        output = model(input_ids, pixel_values=torch.randn(prompt.encoded, 3, 32, 32), logits_to_keep=1)
        prefill = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        model(torch.tensor([[3]]), past_key_values=output.past_key_values)
    decode = counter.get_total_flops() - prefill["Global"]

    prefix = "InternVLForConditionalGeneration"
    tables = prefill.get(f"{prefix}.model.language_model.rotary_emb", 0)  # documented as left out
    cost = unpruned_cost(shape, prompt)
    assert prefill[f"{prefix}.model.vision_tower"] == 2 * cost.vision == 2 * 3 * vision_macs(shape.vision)
    assert prefill[f"{prefix}.model.multi_modal_projector"] == 2 * cost.projector == 2 * 3 * projector_macs(shape)
    assert prefill[f"{prefix}.model.language_model"] - tables == 2 * cost.prefill
    assert prefill[f"{prefix}.lm_head"] == 2 * cost.lm_head == 2 * head_macs(shape.text)
    assert prefill["Global"] - tables == 2 * cost.first_token
    length = visual + prompt.text_tokens
    assert decode - tables // length == 2 * cost.decode_per_token == 2 * decode_macs(shape.text, length + 1)
    cache = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    assert cache == kv_bytes(shape.text, length + 1, itemsize=4)  # the decode step has been appended


@pytest.mark.parametrize("layer", [0, 2])
def test_a_pruned_prefill_equals_torchs_counter(layer: int) -> None:
    """All text follows the picture here, so that the instruction is all of it, as ``cost`` has it."""
    model = tiny_model(DECODERS["grouped-query"])
    shape, prompt = ModelShape.from_config(model.config), Prompt(tiles=4, text_tokens=9)
    visual = prompt.encoded * shape.tile_tokens
    input_ids = torch.tensor([[IMAGE_TOKEN] * visual + [2] * prompt.text_tokens])
    inputs = {"input_ids": input_ids, "pixel_values": torch.randn(prompt.encoded, 3, 32, 32)}
    cost = pruned_cost(shape, prompt, 0.5, layer)
    assert prefill_flops(model, inputs, PaperTokenPruning(keep_ratio=0.5, layer=layer)) == 2 * cost.first_token
    # what a method does with scores is not counted; what the default adds is one product of the embeddings
    compared = visual**2 * shape.text.width
    assert prefill_flops(model, inputs, PyramidTokenPruning(keep_ratio=0.5, layer=layer)) == 2 * (
        cost.first_token + compared
    )
    random = pruned_cost(shape, prompt, 0.5, layer, instruction=0, patch_rows=0)
    assert random.select == 0
    assert prefill_flops(model, inputs, RandomPruning(keep_ratio=0.5, layer=layer)) == 2 * random.first_token


@pytest.mark.parametrize(("layer", "second"), [(0, 1), (0, 2), (1, 2)])
def test_two_cuts_equal_torchs_counter(layer: int, second: int) -> None:
    model = tiny_model(DECODERS["grouped-query"])
    shape, prompt = ModelShape.from_config(model.config), Prompt(tiles=4, text_tokens=9)
    visual = prompt.encoded * shape.tile_tokens
    input_ids = torch.tensor([[IMAGE_TOKEN] * visual + [2] * prompt.text_tokens])
    inputs = {"input_ids": input_ids, "pixel_values": torch.randn(prompt.encoded, 3, 32, 32)}
    stages = [(layer, round(0.6 * visual)), (second, round(0.2 * visual))]
    cost = pruned_cost(shape, prompt, 0.2, layer, stages=stages)
    pruner = PyramidTokenPruning(keep_ratio=0.2, first_ratio=0.6, layer=layer, second_layer=second, choose="top")
    assert prefill_flops(model, inputs, pruner) == 2 * cost.first_token


BACKGROUND = [Encoding(3, background=True), Encoding(2, 1, 1.5, background=True)]
PATCHES = [Encoding(layer=1), Encoding(3, 2, 1.5), Encoding(3, 2, 1.0, floor=0.8)]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("encoding", [*BACKGROUND, *PATCHES, Encoding(2), Encoding(9)])
def test_what_is_not_encoded_equals_torchs_counter(encoding: Encoding, layer: int) -> None:
    """Tiles that differ, or equal ones would be encoded once."""
    model = tiny_model(DECODERS["grouped-query"])
    shape, prompt = ModelShape.from_config(model.config), Prompt(tiles=5, text_tokens=9)
    visual = prompt.encoded * shape.tile_tokens
    torch.manual_seed(0)
    inputs = {
        "input_ids": torch.tensor([[IMAGE_TOKEN] * visual + [2] * prompt.text_tokens]),
        "pixel_values": torch.randn(prompt.encoded, 3, 32, 32),
    }
    pruner = PaperTokenPruning(
        keep_ratio=0.3,
        layer=layer,
        tiles="all" if encoding.tiles is None else encoding.tiles - encoding.background,  # which encodes one more
        left_out="background" if encoding.background else "drop",
        vision_layer=encoding.layer,
        vision_margin=encoding.margin,
        vision_floor=encoding.floor,
    )
    cost = pruned_cost(shape, prompt, 0.3, layer, encoding=encoding)
    assert cost.first_token < pruned_cost(shape, prompt, 0.3, layer).first_token or encoding.tiles == 9
    assert prefill_flops(model, inputs, pruner) == 2 * cost.first_token
    assert pruner.report is not None
    assert pruner.report.encoded_tiles[1] == encoding.rows(prompt)
    assert pruner.report.encoded_tokens[1] == encoding.rows(prompt) * encoding.groups(shape, prompt, 0.3)


def test_a_layer_that_the_tower_has_not_is_refused() -> None:
    for layer in (0, 24):
        with pytest.raises(ValueError, match="vision_layer"):
            pruned_cost(SHAPES["internvl2-2b"], Prompt(12, 100), 0.5, 2, encoding=Encoding(layer=layer))


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_a_llava_next_equals_torchs_counter(layer: int | None) -> None:
    """Newlines, one a row of the merged grid, are text to ``cost``; none of them is instruction."""
    model = tiny_llava()
    shape = ModelShape.from_config(model.config)
    assert (shape.family, shape.tile_tokens, shape.projector_input) == ("llava_next", 16, 24)
    newlines, question = 2 * 4, 9
    prompt = Prompt(tiles=4, text_tokens=newlines + question)
    placeholders = prompt.encoded * shape.tile_tokens + newlines
    inputs = {
        "input_ids": torch.tensor([[IMAGE_TOKEN] * placeholders + [2] * question]),
        "pixel_values": torch.randn(1, prompt.encoded, 3, 32, 32),
        "image_sizes": torch.tensor([[64, 64]]),
    }
    if layer is None:
        assert prefill_flops(model, inputs, None) == 2 * unpruned_cost(shape, prompt).first_token
    else:
        cost = pruned_cost(shape, prompt, 0.5, layer, instruction=question)
        assert prefill_flops(model, inputs, PaperTokenPruning(keep_ratio=0.5, layer=layer)) == 2 * cost.first_token


def prefill_flops(model: PreTrainedModel, inputs: dict[str, torch.Tensor], pruner: TokenPruner | None) -> int:
    """As torch counts them, but for the rotary tables, which are documented as left out."""
    counter = FlopCounterMode(display=False, depth=None)
    with counter, torch.no_grad(), nullcontext() if pruner is None else pruner(model):
        model(**inputs, logits_to_keep=1)
    counts = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return counts["Global"] - sum(value for name, value in counts.items() if name.endswith("rotary_emb"))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "llava-next-7b",  # a LlavaNextConfig is of Vicuna-7B and CLIP-L/14-336 unless told otherwise
            LlavaNextConfig(text_config={"model_type": "llama", "vocab_size": 32064}),
        ),
        (
            "internvl3-1b",
            InternVLConfig(
                text_config=Qwen2Config(
                    vocab_size=151674,
                    hidden_size=896,
                    intermediate_size=4864,
                    num_hidden_layers=24,
                    num_attention_heads=14,
                    num_key_value_heads=2,
                )
            ),
        ),
    ],
)
def test_known_shapes_are_those_of_their_configurations(name: str, config: InternVLConfig | LlavaNextConfig) -> None:
    assert ModelShape.from_config(config, name) == SHAPES[name]


def test_pruning_everything_before_a_layer_is_a_mix_of_two_prefills() -> None:
    text = SHAPES["internvl3-1b"].text
    full, short = prefill_macs(text, 1000), prefill_macs(text, 400)
    assert prefill_macs(text, 1000, [(0, 400)]) == short
    assert prefill_macs(text, 1000, [(6, 400)]) * 24 == 6 * full + 18 * short
    assert prefill_macs(text, 1000, [(6, 1000)]) == full
    assert prefill_macs(text, 1000, [(6, 1000), (12, 400)]) * 24 == 12 * full + 12 * short


def test_scores_are_a_fraction_of_a_percent_of_the_prefill() -> None:
    for shape in SHAPES.values():
        prompt = Prompt(tiles=12, text_tokens=64)
        unpruned = unpruned_cost(shape, prompt)
        assert 0 < pruned_cost(shape, prompt, 0.5, layer=2).select < 0.01 * unpruned.prefill
        at_zero = select_macs(shape, 13, 3392, [(0, 1728)], 64)
        assert at_zero > select_macs(shape, 13, 3392, [(2, 1728)], 64)


def test_a_single_tile_has_no_thumbnail() -> None:
    assert Prompt(tiles=1, text_tokens=5).encoded == 1
    assert Prompt(tiles=2, text_tokens=5).encoded == 3


def test_one_token_always_stays() -> None:
    assert kept_tokens(16, 0.001) == 1
    assert kept_tokens(3328, 0.5) == 1664


def test_to_dict_doubles_macs_into_flops() -> None:
    cost = unpruned_cost(SHAPES["internvl3-1b"], Prompt(1, 10)).to_dict()
    assert cost["prefill"]["flops"] == 2 * cost["prefill"]["macs"] > 0
    assert isinstance(cost["kv_bytes"], int)


@pytest.mark.parametrize(
    ("ratio", "layer", "named"),
    [(0.0, 2, "keep_ratio"), (1.5, 2, "keep_ratio"), (0.5, -1, "layer"), (0.5, 24, "layer")],
)
def test_impossible_requests_are_refused_by_name(ratio: float, layer: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        pruned_cost(SHAPES["internvl2-2b"], Prompt(12, 100), ratio, layer)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'full'"),
        ({"vision_feature_layer": [-2, -1]}, "several feature layers"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip_vision_model"),
    ],
)
def test_a_llava_next_with_other_tokens_is_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelShape.from_config(LlavaNextConfig(**settings))


def test_mixture_of_experts_is_refused() -> None:
    config = InternVLConfig(text_config={"model_type": "qwen3_moe"})
    with pytest.raises(ValueError, match="qwen3_moe"):
        ModelShape.from_config(config)
