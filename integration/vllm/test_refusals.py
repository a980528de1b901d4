"""What cannot be right is refused in one line, before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines import WIDE, Engines, start, turn


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"keep_ratio": 0}, "keep_ratio must be over 0 and at most 1, got 0"),
        ({"keep_ratio": "half"}, "keep_ratio must be over 0 and at most 1, got 'half'"),
        ({"keep": 0.5}, "no option is called 'keep', there are tiles, tile_threshold"),
        ({"coverage": 0.9}, "coverage cannot be set here: vLLM must know how many tokens stay"),
        ({"layer": 2}, "layer cannot be set here"),
        ({"vision_layer": 2}, "vision_layer cannot be set here: vLLM's encoder takes whole tiles"),
        ({"tiles": "salient", "tile_score": "attention"}, "tiles='salient' cannot be chosen by tile_score='attention'"),
        ({"positions": "original"}, "positions cannot be set here"),
        (
            {"instruction": "cosine"},
            "instruction must be one of 'attention', 'neighbourhood', 'embedding', 'none', got 'cosine'",
        ),
        (0.5, 'the setting must be an object such as {"keep_ratio": 0.5}, got 0.5'),
    ],
)
def test_settings(checkpoints: dict[str, str], setting: object, message: str) -> None:
    with pytest.raises(ValueError, match="ptprune: ") as error:
        start(checkpoints["native"], hf_overrides={"ptprune": setting})
    assert message in str(error.value)


def test_other_models_by_name(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="ptprune: Qwen2ForCausalLM cannot be pruned in vLLM. Supported: InternVLFor"):
        start(str(tmp_path), hf_overrides={"ptprune": {"keep_ratio": 0.5}}, skip_tokenizer_init=True)


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("native", {"compilation_config": {"cudagraph_mm_encoder": True}}, "CUDA graphs of the vision encoder"),
        ("chat", {"compilation_config": {"compile_mm_encoder": True}}, "compiled vision encoder"),
        ("chat", {"mm_encoder_tp_mode": "data"}, "--mm-encoder-tp-mode data shares out"),
        ("native", {"enable_lora": True}, "LoRA adapters change the layer that reads the question"),
        ("native", {"model_impl": "transformers"}, "--model-impl transformers cannot be pruned"),
        ("native", {"mm_processor_kwargs": {"ptprune": {"keep_ratio": 0.5}}}, "belong in --hf-overrides"),
    ],
)
def test_servers(checkpoints: dict[str, str], checkpoint: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"ptprune: .*{message}"):
        start(checkpoints[checkpoint], hf_overrides={"ptprune": {"keep_ratio": 0.5}}, **options)


@pytest.mark.parametrize(
    "request_setting",
    [{"keep_ratio": 0}, {"keep_ratio": 1.5}, {"keep_ratio": "x"}, {"alpha": 1}, 0.5, {"tiles": 0}, {"tiles": "most"}],
)
def test_requests(engines: Engines, request_setting: object) -> None:
    engine = engines.get("native", {"keep_ratio": 0.5})
    prompt = {"prompt": turn("which digit is blue?"), "multi_modal_data": {"image": WIDE}}
    with pytest.raises(
        ValueError, match="ptprune: (keep_ratio must be over 0|tiles must be 'all'|a request may set keep_ratio, tiles)"
    ):
        engine.generate({**prompt, "mm_processor_kwargs": {"ptprune": request_setting}}, use_tqdm=False)
    assert engines.ask(engine, (prompt["prompt"], [WIDE]))[0].tokens  # and the engine lives
