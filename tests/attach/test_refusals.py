"""What cannot be right is refused by name, before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, StaticCache

from ptprune import PyramidTokenPruning, RandomPruning, conventions
from ptprune.attach.windows import restrict
from ptprune.errors import Refused
from ptprune.methods.pyramid import PaperTokenPruning
from tests.internvl import batch, prompt, tiny_internvl
from tests.versions import encodes_first
from tests.zoo import ZOO

INPUTS = batch(prompt([5, 6], 5, [7, 8, 9]), prompt([5], 2, [7]))


@pytest.fixture
def model():
    return tiny_internvl()


@pytest.fixture
def computed(model):
    """Names of the modules that ran."""
    ran: list[str] = []
    for name in ("vision_tower", "language_model"):
        getattr(model.model, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    return ran


def static_cache(model):
    return StaticCache(config=model.config.get_text_config(), max_cache_len=20)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=4)}, "prefill_chunk_size"),
        ({"use_cache": False}, "use_cache=False"),
        ({"assistant_early_exit": 2}, "assistant_early_exit"),
        ({"past_key_values": "static"}, "has room for 20 tokens"),
        ({"past_key_values": "offloaded"}, "offloaded cache"),
        ({"attention_mask": torch.ones(2, 1, 27, 27)}, "must be 2D"),
    ],
)
def test_generate(model, computed, options, message):
    if options.get("past_key_values") == "static":
        options = {"past_key_values": static_cache(model)}
    elif options.get("past_key_values") == "offloaded":
        cache = DynamicCache()
        cache.offloading = True
        options = {"past_key_values": cache}
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match=message):
        model.generate(**{**INPUTS, **options}, max_new_tokens=3)
    assert not computed


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": INPUTS["input_ids"]}, "labels"),
        ({"past_key_values": "static"}, "has room for 20 tokens"),
        ({"attention_mask": torch.ones(2, 1, 27, 27)}, "must be 2D"),
        ({"attention_mask": torch.ones(2, 20)}, "attention_mask has 20 columns"),
    ],
)
def test_forward(model, computed, options, message):
    if options.get("past_key_values"):
        options = {"past_key_values": static_cache(model)}
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match=message):
        model(**{**INPUTS, **options})
    assert not computed


@torch.no_grad()
def test_text_only_prompts_may_use_what_pruning_cannot(model):
    text = batch(prompt([5, 6, 7]))
    stock = model.generate(**text, max_new_tokens=3, cache_implementation="static", disable_compile=True)
    with PyramidTokenPruning()(model):
        pruned = model.generate(**text, max_new_tokens=3, cache_implementation="static", disable_compile=True)
    assert torch.equal(pruned, stock)


@pytest.mark.parametrize("option", conventions.REPEATS)
def test_versions_that_put_repeated_pictures_together_wrongly(model, computed, option, monkeypatch):
    monkeypatch.setattr(conventions, "REPEATS_TILES_WRONG", True)
    with PyramidTokenPruning()(model), pytest.raises(Refused, match=f"{option}=2: .* install transformers 5.19"):
        model.generate(**INPUTS, max_new_tokens=2, **{option: 2})
    assert not computed


def test_training_mode(model, computed):
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match="training mode"):
        model.train()(**INPUTS)
    assert not computed


def test_images_encoded_before_attaching(model):
    features = model.model.get_image_features(INPUTS["pixel_values"], return_dict=True)
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match="encoded before the pruner was attached"):
        model(input_ids=INPUTS["input_ids"], mm_encoder_outputs={"image": features})


def test_more_or_fewer_pictures_than_placeholders(model):
    for tiles in (3, 14):
        with PyramidTokenPruning()(model), pytest.raises(ValueError, match=f"28 visual tokens, but {4 * tiles} were"):
            model(input_ids=INPUTS["input_ids"], pixel_values=torch.zeros(tiles, 3, 32, 32))


def test_runs_that_are_not_whole_tiles(model):
    inputs = batch(prompt([5], 2, [7]))
    inputs["input_ids"][0, 4:11] = inputs["input_ids"][0, 3:10].clone()
    inputs["input_ids"][0, 3] = 9
    with (
        PyramidTokenPruning()(model),
        pytest.raises(ValueError, match="from prompt position 2 on .* text stands between"),
    ):
        model(**inputs)


def test_overflowed_scores(model):
    with torch.no_grad():
        model.model.vision_tower.encoder.layer[-1].attention.q_proj.weight.fill_(float("nan"))
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match="embeddings holds NaN"):
        model(**INPUTS)
    with PaperTokenPruning()(model), pytest.raises(ValueError, match="token scores hold NaN"):
        model(**INPUTS)


@torch.no_grad()
def test_a_ragged_cache_is_not_continued_without_the_pruner(model):
    pruner = PyramidTokenPruning()
    with pruner(model):
        cache = model(**INPUTS).past_key_values
    new = torch.tensor([[3], [3]])
    with pytest.raises(RuntimeError, match="continue it with the pruner attached"):
        model(input_ids=new, past_key_values=cache)
    with RandomPruning(layer=0)(model):
        assert model(input_ids=new, past_key_values=cache).logits.isfinite().all()
    with pytest.raises(RuntimeError, match="continue it with the pruner attached"):
        model(input_ids=new, past_key_values=cache)


@torch.no_grad()
def test_compact_positions_go_on_with_a_pruner_that_reaches_their_layers(model):
    inputs, new = batch(prompt([5, 6], 5, [7, 8])), {"input_ids": torch.tensor([[3]])}

    def cache():
        with PyramidTokenPruning(layer=1, positions="compact")(model):
            return model(**inputs).past_key_values

    for_nobody, for_later_layers, for_all = cache(), cache(), cache()
    with pytest.raises(RuntimeError, match="compact positions"):
        model(**new, past_key_values=for_nobody)
    with RandomPruning(layer=2)(model), pytest.raises(RuntimeError, match="compact positions"):
        model(**new, past_key_values=for_later_layers)
    with PyramidTokenPruning(layer=1, positions="compact")(model):
        expected = model(**new, past_key_values=model(**inputs).past_key_values).logits
    with RandomPruning(layer=0)(model):
        assert torch.equal(model(**new, past_key_values=for_all).logits, expected)


@torch.no_grad()
def test_an_even_cache_goes_on_without_the_pruner(model):
    inputs, new = batch(prompt([5, 6], 5, [7, 8])), torch.tensor([[3, 4]])
    with PyramidTokenPruning()(model):
        expected = model(input_ids=new, past_key_values=model(**inputs).past_key_values).logits
        cache = model(**inputs).past_key_values
    assert torch.equal(model(input_ids=new, past_key_values=cache).logits, expected)


@pytest.mark.smoke
@torch.no_grad()
def test_cropping_into_the_dropped_tokens(model):
    with PyramidTokenPruning()(model):
        cache = model(**INPUTS).past_key_values
    cache.crop(-2)
    assert cache.layers[0].valid.shape[1] == cache.layers[0].keys.shape[2]
    with pytest.raises(ValueError, match="cannot crop 9 tokens"):
        cache.crop(-9)
    cache.reset()
    assert cache.get_seq_length() == 0


@torch.no_grad()
def test_cropping_into_a_later_picture(model):
    with PyramidTokenPruning()(model):
        cache = model(**batch(prompt([5, 6], 5, [7, 8]))).past_key_values
        later = batch(prompt([20], 3, [21, 22]), seed=2)
        model(input_ids=later["input_ids"], pixel_values=later["pixel_values"], past_key_values=cache)
    cache.crop(-2)
    with pytest.raises(ValueError, match="cannot crop 10 tokens"):
        cache.crop(-10)


@pytest.mark.smoke
def test_unsupported_models():
    text = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    with pytest.raises(TypeError, match=r"LlamaForCausalLM is not supported.*InternVLForConditionalGeneration"):
        PyramidTokenPruning().attach(text)
    with pytest.raises(TypeError, match="Linear is not supported"), PyramidTokenPruning()(nn.Linear(1, 1)):
        pass


def test_mllama_by_name_and_reason():
    mllama = type("MllamaForConditionalGeneration", (nn.Module,), {})()
    with pytest.raises(TypeError, match="cross-attention"):
        PyramidTokenPruning().attach(mllama)


def test_compiled_models(model):
    with pytest.raises(TypeError, match="_orig_mod"):
        PyramidTokenPruning().attach(torch.compile(model))
    model.model.language_model.layers[0].compile()
    with pytest.raises(RuntimeError, match=r"layers\.0 is compiled"):
        PyramidTokenPruning().attach(model)


def test_too_shallow(model):
    with pytest.raises(ValueError, match="layer must be below the model's 4 language model layers, got 4"):
        PyramidTokenPruning(layer=4).attach(model)


def test_flex_attention(model):
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention"):
        PyramidTokenPruning().attach(model)


def test_layers_that_are_no_attention(model):
    model.config.text_config.layer_types = ["full_attention", "linear_attention"] * 2
    with pytest.raises(ValueError, match="linear_attention layers are not supported"):
        PyramidTokenPruning().attach(model)


@torch.no_grad()
def test_a_window_that_tokens_have_left():
    model = ZOO["gemma3"].build(sliding_window=8)
    inputs = ZOO["gemma3"].inputs([("tell me what you see here look at the thing", [])])
    later = ZOO["gemma3"].inputs(ZOO["gemma3"].prompts["one picture"])
    cache = model(**inputs).past_key_values
    ids = torch.cat([inputs["input_ids"], later["input_ids"]], 1)
    turn = {**later, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    turn["token_type_ids"] = torch.nn.functional.pad(later["token_type_ids"], (inputs["input_ids"].shape[1], 0))
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match="sliding layers hold the last 7"):
        model.generate(**turn, past_key_values=cache, max_new_tokens=2)


def test_flash_attention_beyond_the_window():
    mask, columns = torch.ones(1, 4, dtype=torch.bool), torch.arange(4)[None]
    with pytest.raises(ValueError, match="flash_attention_2 cannot apply a sliding window"):
        restrict(None, 2, columns, columns, mask, "flash_attention_2")


@encodes_first
@torch.no_grad()
def test_beams_over_pictures_that_the_stock_model_mixes_up():
    inputs = ZOO["glm4v"].inputs(ZOO["glm4v"].prompts["several pictures"])
    model = ZOO["glm4v"].build()
    with PyramidTokenPruning()(model), pytest.raises(ValueError, match="mix up the pictures"):
        model.generate(**inputs, max_new_tokens=2, num_beams=2)


@torch.no_grad()
def test_grid_positions_cannot_be_told_from_a_mask():
    inputs = ZOO["qwen2-vl"].inputs(ZOO["qwen2-vl"].prompts["batch"])
    model = ZOO["qwen2-vl"].build()
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with PyramidTokenPruning()(model):
        cache = model(**inputs).past_key_values
        with pytest.raises(ValueError, match="pass position_ids"):
            model(input_ids=torch.tensor([[20], [21]]), attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("model_class", ["MllamaForConditionalGeneration", "PerceptionLMForConditionalGeneration"])
def test_families_that_are_refused_by_name(model_class):
    stranger = type(model_class, (nn.Module,), {})()
    with pytest.raises(TypeError, match=f"{model_class} is not supported: its .* Supported: InternVL.*Glm4v"):
        PyramidTokenPruning().attach(stranger)


@pytest.mark.smoke
def test_a_refused_attach_leaves_nothing(model):
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match="layer must be"):
        PyramidTokenPruning(layer=9).attach(model)
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
    assert "generate" not in model.__dict__
    PyramidTokenPruning().attach(model)


class _Wrong(RandomPruning):
    def select(self, image):
        selection = super().select(image)
        return type(selection)(selection.kept.flip(0))


def test_a_methods_wrong_answer_is_named(model):
    with _Wrong()(model), pytest.raises(ValueError, match="_Wrong.select must return sorted"):
        model(**INPUTS)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("keep_ratio", 0, "over 0 and at most 1"),
        ("keep_ratio", 1.2, "over 0 and at most 1"),
        ("keep_ratio", float("nan"), "over 0 and at most 1"),
        ("keep_ratio", "half", "over 0 and at most 1"),
        ("keep_tokens", 0, "None or a whole number"),
        ("keep_tokens", 2.5, "None or a whole number"),
        ("coverage", 0, "None or over 0"),
        ("layer", -1, "a whole number from 0"),
        ("layer", 1.5, "a whole number from 0"),
        ("positions", "new", "'original' or 'compact'"),
        ("alpha", 1.5, "between 0 and 1"),
        ("temperature", 0, "over 0"),
        ("temperature", float("inf"), "over 0"),
        ("thumbnail", "drop", "'ratio', 'whole' or 'region'"),
        ("region", "cls", "one of 'cls-similarity'"),
        ("token", "cls", "one of 'cls-attention'"),
        ("instruction", "cls", "one of 'attention', 'neighbourhood', 'embedding', 'none'"),
        ("normalize_instruction", 2, "True or False"),
    ],
)
def test_values(field, value, allowed):
    with pytest.raises(ValueError, match=rf"{field} must be .*{allowed}.*got {value!r}"):
        PyramidTokenPruning(**{field: value})
