"""Guarantees of docs/guarantees.md that the matrix cannot state, on the zoo's InternVL and prompts written by hand."""

from __future__ import annotations

import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.attach.generation import Generation
from ptprune.conventions import ModelCall
from tests.attach.test_matrix import MODES, items, pruner_of
from tests.exact import assert_exact, dropped_of
from tests.internvl import IMAGE, START, batch, prompt, tiny_internvl
from tests.oracle import blocked, eager_twin
from tests.pairs import all_pairs
from tests.zoo import model_of

PROMPTS = {
    "one tile": [prompt([5, 6], 1, [7, 8, 9])],
    "five tiles": [prompt([5, 6], 5, [7, 8, 9])],
    "several images": [prompt([5], 3, [6], 1, [7], 7, [8, 9])],
    "no text after": [prompt([5, 6, 7], 4)],
    "batch, same tiles": [prompt([5, 6], 5, [7, 8, 9]), prompt([9, 8, 7], 5, [6, 5])],
    "batch, other tiles": [prompt([5, 6], 7, [7, 8, 9]), prompt([5], 1, [7, 8, 9, 10]), prompt([4], 3, [6], 2, [7])],
    "batch, equal lengths": [prompt([5, 6], 5, [7, 8, 9]), prompt([5], 3, [7 + i for i in range(12)])],
    "batch with text only": [prompt([5, 6], 5, [7, 8, 9]), prompt([5, 6, 7, 8])],
    "long question": [prompt([5], 3, [7 + i % 40 for i in range(150)])],
}


AXES = {
    "prompt": list(PROMPTS),
    "method": ["ptp", "staged", "visionzip"],
    "layer": [0, 1, 3],
    "attention": ["sdpa", "eager"],
    "side": ["left", "right"],
    "positions": ["original", "compact"],
    "mode": ["greedy", "beams"],
}


@pytest.mark.parametrize(
    "case", items(all_pairs(AXES, lambda case: case.get("method") != "visionzip" or not case.get("layer")))
)
@torch.no_grad()
def test_prompts_written_by_hand(case):
    """Tiles that no processor would cut, rows of one length that lose different numbers, a very long question."""
    model, inputs = model_of("internvl", case["attention"]), batch(*PROMPTS[case["prompt"]], side=case["side"])
    report = assert_exact(model, inputs, pruner_of(case, keep_ratio=0.4), 8, **MODES[case["mode"]])
    assert len(report.images) == int((inputs["input_ids"] == START).sum())


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_float64_agrees_to_rounding(layer):
    model = tiny_internvl(torch.float64)
    inputs = batch(*PROMPTS["batch, other tiles"], dtype=torch.float64)
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer)
    with pruner(model):
        pruned = model(**inputs).logits
    with blocked(model, dropped_of(pruner.report, inputs), layer, inputs["attention_mask"]):
        stock = model(**inputs).logits
    assert (pruned - stock)[pruner.report.kept_mask].abs().max() <= 1e-6


@torch.no_grad()
def test_bfloat16_runs_and_keeps_exactly_k():
    model, inputs = tiny_internvl(torch.bfloat16), batch(prompt([5], 5, [7, 8]), dtype=torch.bfloat16)
    pruner = PyramidTokenPruning(keep_ratio=0.3)
    with pruner(model):
        logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits.float()).all()
    assert len(pruner.report.images[0].kept) == round(0.3 * 20)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_prompt_lookup_and_assisted_decoding_change_nothing(layer):
    model = tiny_internvl()
    inputs = batch(prompt([5, 6, 7, 8], 5, [9, 5, 6, 7, 8, 9, 5, 6]))
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer)
    with pruner(model):
        greedy = model.generate(**inputs, max_new_tokens=10)
        scores = pruner.report.images[0].scores["fused"]
        looked_up = model.generate(**inputs, max_new_tokens=10, prompt_lookup_num_tokens=3)
        drafted = pruner.report.images[0].scores["fused"]
        torch.testing.assert_close(drafted, scores, msg="drafts are not part of the question")
        assisted = model.generate(**inputs, max_new_tokens=10, assistant_model=tiny_internvl(seed=3))
    assert torch.equal(looked_up, greedy)
    assert torch.equal(assisted, greedy)


def test_what_is_prompt_in_a_forward_pass_of_generate():
    ids, mask, cache = torch.ones(1, 27), torch.ones(1, 27), object()
    assert Generation.of(ModelCall({"input_ids": ids})).prompt_columns(27 + 3, 0) == 27
    whole = Generation.of(ModelCall({"input_ids": ids, "attention_mask": mask, "past_key_values": cache}))
    assert whole.prompt_columns(5 + 3, 22) == 5, "the cache has seen 22 of 27 tokens; 3 drafts follow"
    new_only = Generation.of(ModelCall({"input_ids": ids[:, :5], "attention_mask": mask, "cache": cache}))
    assert new_only.prompt_columns(5 + 3, 22) == 5


@torch.no_grad()
def test_one_tile_is_no_thumbnail():
    model, pruner = tiny_internvl(), PyramidTokenPruning()
    with pruner(model):
        model(**batch(*PROMPTS["one tile"]))
    (region,) = pruner.report.images[0].regions
    assert (region.row, region.column, region.is_thumbnail, region.budget, region.saliency) == (0, 0, False, 2, None)


@torch.no_grad()
def test_generate_without_cache_keeps_the_prompts_choice():
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, other tiles"])
    chosen = []

    class Counting(PyramidTokenPruning):
        def select(self, image):
            chosen.append(image.layout.sample)
            return super().select(image)

    with Counting(keep_ratio=0.4, layer=0)(model):
        cached = model.generate(**inputs, max_new_tokens=8)
        chosen.clear()
        assert torch.equal(model.generate(**inputs, max_new_tokens=8, use_cache=False), cached)
    assert chosen == [0, 1, 2, 2], "once for every image, not at every step"


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_hand_written_loop(layer, positions, with_mask):
    model = tiny_internvl()
    rows = PROMPTS["batch, other tiles"] if with_mask else PROMPTS["several images"]
    inputs = batch(*rows)
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, positions=positions)
    mask, tokens = inputs["attention_mask"], []
    with pruner(model):
        expected = model.generate(**inputs, max_new_tokens=6)[:, -6:]
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        extra = {"attention_mask": mask, "position_ids": position_ids} if with_mask else {}
        output = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], use_cache=True, **extra)
        for _ in range(6):
            output.logits[..., IMAGE] = -torch.inf
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            mask, position_ids = torch.cat([mask, torch.ones_like(mask[:, :1])], 1), position_ids[:, -1:] + 1
            extra = {"attention_mask": mask, "position_ids": position_ids} if with_mask else {}
            output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, **extra)
    assert torch.equal(torch.cat(tokens, 1), expected)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_decoding_after_right_padding(layer, positions):
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, other tiles"], side="right")
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    lengths = mask.sum(1, keepdim=True)
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, positions=positions)
    new = torch.tensor([[20], [21], [22]])
    later = torch.cat([mask, torch.ones_like(new)], 1)
    with pruner(model):
        cache = model(**inputs, position_ids=position_ids).past_key_values
        pruned = model(input_ids=new, past_key_values=cache, attention_mask=later, position_ids=lengths).logits[:, -1]
    full = {"input_ids": torch.cat([ids, new], 1), "position_ids": torch.cat([position_ids, lengths], 1)}
    with blocked(model, dropped_of(pruner.report, inputs), layer, mask, compact=positions == "compact"):
        stock = model(**full, pixel_values=inputs["pixel_values"], attention_mask=later).logits[:, -1]
    assert (pruned - stock).abs().max() <= 5e-5


@torch.no_grad()
def test_rows_of_a_cache_move_together():
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, other tiles"])
    pruner = PyramidTokenPruning(keep_ratio=0.4, positions="compact")
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    new, position_ids = torch.tensor([[20], [21], [22]]), mask.sum(1, keepdim=True) - 1

    def step(rows, move):
        cache = model(**inputs).past_key_values
        move(cache)
        picked = {"attention_mask": mask[rows], "position_ids": position_ids[rows]}
        return model(input_ids=new[rows], past_key_values=cache, **picked).logits

    with pruner(model):
        stock = step(torch.arange(3), lambda cache: None)
        for rows, move in (
            (torch.tensor([2, 0, 1]), lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1]))),
            (torch.tensor([0, 2]), lambda cache: cache.batch_select_indices(torch.tensor([0, 2]))),
            (torch.tensor([0, 0, 1, 1, 2, 2]), lambda cache: cache.batch_repeat_interleave(2)),
        ):
            torch.testing.assert_close(step(rows, move), stock[rows])


@torch.no_grad()
def test_taking_back_the_last_token():
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, other tiles"])
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=0)
    mask = inputs["attention_mask"]
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with pruner(model):
        first = model(**inputs, position_ids=position_ids)
        first.past_key_values.crop(-1)
        again = {"input_ids": inputs["input_ids"][:, -1:], "position_ids": position_ids[:, -1:]}
        second = model(**again, attention_mask=mask, past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits[:, -1], first.logits[:, -1])


@pytest.mark.parametrize("second", [[20, 21, 22], [20, *prompt(4), 21, 22]], ids=["text", "another image"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_second_turn_on_a_returned_cache(layer, positions, second):
    model = tiny_internvl()
    first = batch(prompt([5, 6], 5, [7, 8]), prompt([5], 2, [9]))
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer, positions=positions)
    with pruner(model):
        turn = model.generate(**first, max_new_tokens=4, return_dict_in_generate=True)
        report = pruner.report
        full = torch.cat([turn.sequences, torch.tensor([second] * 2)], 1)
        mask = torch.nn.functional.pad(first["attention_mask"], (0, 4 + len(second)), value=1)
        images = {}
        if IMAGE in second:
            images["pixel_values"] = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        pruned = model.generate(
            input_ids=full, attention_mask=mask, past_key_values=turn.past_key_values, max_new_tokens=6, **images
        )
        later = pruner.report
    dropped = torch.nn.functional.pad(dropped_of(report, first), (0, full.shape[1] - report.kept_mask.shape[1]))
    ends = torch.full((full.shape[1],), full.shape[1])
    ends[: report.kept_mask.shape[1]] = report.kept_mask.shape[1]
    if images:
        assert later is not report
        new = later.kept_mask.shape[1]
        dropped[:, -new:] = ~later.kept_mask
        images["pixel_values"] = torch.cat(
            [
                first["pixel_values"][:5],
                images["pixel_values"][:4],
                first["pixel_values"][5:],
                images["pixel_values"][4:],
            ]
        )
    else:
        images["pixel_values"] = first["pixel_values"]
    with blocked(model, dropped, layer, mask, ends, compact=positions == "compact"):
        stock = model.generate(input_ids=full, attention_mask=mask, max_new_tokens=6, use_cache=False, **images)
    assert torch.equal(pruned, stock)


@torch.no_grad()
def test_compact_positions_before_the_model_equal_a_physically_shorter_prompt():
    model, inputs = tiny_internvl(), batch(*PROMPTS["five tiles"])
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=0, positions="compact")
    with pruner(model):
        pruned = model.generate(**inputs, max_new_tokens=8)[:, -8:]
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == IMAGE] = model.get_image_features(inputs["pixel_values"]).pooler_output.flatten(0, 1)
    short = embeds[pruner.report.kept_mask][None]
    assert torch.equal(model.generate(inputs_embeds=short, max_new_tokens=8), pruned)


@torch.no_grad()
def test_prompt_given_as_embeddings():
    model, inputs = tiny_internvl(), batch(*PROMPTS["five tiles"])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    pruner = PyramidTokenPruning(keep_ratio=0.4)
    with pruner(model):
        expected = model(**inputs).logits
        given = model(
            inputs_embeds=embeds, pixel_values=inputs["pixel_values"], attention_mask=inputs["attention_mask"]
        )
    assert torch.equal(given.logits, expected)


@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_a_prompt_without_any_text(layer):
    model, inputs = tiny_internvl(), batch(prompt([], 4))
    picture = inputs["input_ids"] == IMAGE
    inputs = {"input_ids": inputs["input_ids"][picture][None], "pixel_values": inputs["pixel_values"]}
    pruner = PyramidTokenPruning(keep_ratio=0.4, layer=layer)
    with pruner(model):
        pruned = model(**inputs).logits
    kept = pruner.report.kept_mask
    assert kept.sum() == round(0.4 * picture.sum().item())
    assert not pruner.report.images[0].scores["instruction"].any()
    with blocked(model, ~kept, layer, torch.ones_like(kept)):
        assert (pruned - model(**inputs).logits)[kept].abs().max() <= 5e-5


@torch.no_grad()
def test_text_only_prompts_pass_untouched():
    model, inputs = tiny_internvl(), batch(prompt([5, 6, 7]), prompt([8, 9]))
    stock = model.generate(**inputs, max_new_tokens=5)
    pruner = PyramidTokenPruning()
    with pruner(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), stock)
    assert pruner.report is None


@torch.no_grad()
def test_vision_features_of_an_earlier_layer():
    model, inputs = tiny_internvl(), batch(*PROMPTS["five tiles"])
    model.config.vision_feature_layer = -2
    pruner = PyramidTokenPruning(keep_ratio=0.4, alpha=0.0)
    with pruner(model):
        model(**inputs)
    maps = eager_twin(model).model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    rows = maps[0][:, :, 0, 1:].mean(1).reshape(-1, 1, 4, 4)
    expected = torch.nn.functional.avg_pool2d(rows, 2).flatten()
    torch.testing.assert_close(pruner.report.images[0].scores["token"], expected)


@pytest.mark.parametrize("keep", [{"keep_ratio": 0.01}, {"keep_tokens": 3}, {"keep_tokens": 999}, {"coverage": 0.7}])
@torch.no_grad()
def test_other_ways_to_say_how_many(keep):
    model, inputs = tiny_internvl(), batch(*PROMPTS["batch, other tiles"])
    pruner = PyramidTokenPruning(**keep)
    with pruner(model):
        model(**inputs)
    for image in pruner.report.images:
        kept = len(image.kept)
        assert kept == sum(region.budget for region in image.regions)
        if "keep_tokens" in keep:
            assert kept == min(keep["keep_tokens"], image.num_tokens)
        elif "keep_ratio" in keep:
            assert kept == 1
        else:
            fused = image.scores["fused"].sort(descending=True).values
            assert fused[:kept].sum() >= 0.7 * fused.sum() - 1e-5
            assert fused[: kept - 1].sum() < 0.7 * fused.sum()
