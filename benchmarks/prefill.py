"""What pruning costs and brings in wall-clock time, at a real model's proportions with random weights.

Three arms take turns: the stock model on the whole prompt, the pruned model, and "ideal", the stock model on a prompt
that is physically as short as the pruned one. Quoted are medians of the ratios, round by round: absolute times mean
little on shared machines.

    python benchmarks/prefill.py                      # InternVL3-1B proportions, about 15 minutes on two cores
    python benchmarks/prefill.py --decoder-layers 4   # a quick look

The vision tower has its true width but one layer: the language model's prefill is what is timed, and the selection's
work in the vision tower (one [CLS] row of its last layer) does not depend on its depth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ptprune import PyramidTokenPruning
from ptprune.clock import Clock
from ptprune.shapes import SHAPES, ModelShape

IMAGE_TOKEN, TEXT_TOKENS = 1, 48
ARMS = ("unpruned", "pruned", "ideal")


def build(shape: ModelShape, decoder_layers: int) -> InternVLForConditionalGeneration:
    """A model of the shape's proportions; the vocabulary is small, since prefill computes one position of the head."""
    text, vision = shape.text, shape.vision
    patch = round((vision.patch_values / 3) ** 0.5)
    side = round(vision.patches**0.5) * patch
    config = InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            "hidden_size": vision.width,
            "num_hidden_layers": 1,
            "num_attention_heads": vision.width // 64,
            "intermediate_size": vision.ffn,
            "image_size": [side, side],
            "patch_size": [patch, patch],
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 1000,
            "hidden_size": text.width,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "intermediate_size": text.ffn,
        },
        image_token_id=IMAGE_TOKEN,
        image_seq_length=shape.tile_tokens,
    )
    return InternVLForConditionalGeneration(config).eval()


@torch.inference_mode()
def measure(shape: ModelShape, decoder_layers: int, tiles: int, keep_ratio: float, layer: int, rounds: int) -> dict:
    torch.manual_seed(0)
    model = build(shape, decoder_layers)
    encoded = tiles + (tiles > 1)
    side = model.config.vision_config.image_size[0]
    ids = torch.cat([torch.full((8,), 5), torch.full((encoded * shape.tile_tokens,), IMAGE_TOKEN)])
    ids = torch.cat([ids, torch.arange(10, 10 + TEXT_TOKENS)])[None]
    pixels = torch.randn(encoded, 3, side, side)
    pruner = PyramidTokenPruning(keep_ratio=keep_ratio, layer=layer)

    def prefill(**inputs: torch.Tensor) -> float:
        start = time.perf_counter()
        model(**inputs, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def pruned() -> tuple[float, float, float]:
        clock = Clock()
        with pruner(model, clock=clock):
            features = model.model.get_image_features(pixels, return_dict=True)
            vision_work = clock.seconds["select"]
            seconds = prefill(input_ids=ids, mm_encoder_outputs={"image": features})
        return seconds, clock.seconds["select"], vision_work

    features = model.model.get_image_features(pixels, return_dict=True)
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == IMAGE_TOKEN] = features.pooler_output.flatten(0, 1)
    pruned()  # warm up, and learn which tokens stay
    short = embeds[:, pruner.report.kept_mask[0]]
    prefill(inputs_embeds=short)
    rows = []
    for number in range(rounds):
        row = {}
        for arm in ARMS[number % 3 :] + ARMS[: number % 3]:  # no arm always runs in another's wake
            if arm == "unpruned":
                row[arm] = prefill(input_ids=ids, mm_encoder_outputs={"image": features})
            elif arm == "ideal":
                row[arm] = prefill(inputs_embeds=short)
            else:
                row[arm], row["select"], row["vision"] = pruned()
        rows.append(row)
        print(f"round {number + 1} of {rounds}: {rows[-1]}", file=sys.stderr)

    def median(numerator: str, denominator: str) -> float:
        return statistics.median(row[numerator] / row[denominator] for row in rows)

    before, after = pruner.report.sequence_length[0]
    return {
        "shape": shape.name,
        "decoder_layers": decoder_layers,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "tokens": {"before": before, "after": after, "instruction": TEXT_TOKENS},
        "layer": layer,
        "keep_ratio": keep_ratio,
        "rounds": rows,
        "ratios": {
            "select_share": median("select", "unpruned"),
            "prefill_vs_unpruned": median("pruned", "unpruned"),
            "prefill_vs_ideal": median("pruned", "ideal"),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="internvl3-1b", choices=sorted(SHAPES))
    parser.add_argument("--decoder-layers", type=int, help="fewer decoder layers than the shape has")
    parser.add_argument("--tiles", type=int, default=12)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    layers = options.decoder_layers or shape.text.layers
    result = measure(shape, layers, options.tiles, options.keep_ratio, options.layer, options.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
