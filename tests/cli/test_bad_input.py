"""Wrong usage and unreadable input: exit status 2, one line on standard error, nothing on standard output."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.command import Command, refused


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_unreadable_pictures(ptprune: Command, tmp_path: Path, json_flag: tuple[str, ...]) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    Image.new("RGB", (20000, 3)).save(tmp_path / "line.png")
    whole = tmp_path / "whole.png"
    Image.effect_noise((80, 80), 90).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.png").write_text("hello")
    for name, says in [
        ("none.png", "no such file"),
        ("", "not a file"),
        ("text.png", "not a picture"),
        ("half.png", "truncated"),
        ("dot.png", "1 x 1"),
        ("line.png", "20000 x 3"),
    ]:
        refused(ptprune("run", tmp_path / name, "-q", "w5", *json_flag), says)


def test_one_bad_picture_among_good_ones(ptprune: Command, picture: Path, tmp_path: Path) -> None:
    refused(ptprune("run", picture, tmp_path / "none.png", "-q", "w5"), "none.png: no such file")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-q", ""], "--question"),
        (["-q", " \n"], "--question"),
        ([], "--question"),
        (["-q", "w5 <IMG_CONTEXT>"], "<IMG_CONTEXT>"),
        (["-q", "w5", "--keep-ratio", "0"], "--keep-ratio must be"),
        (["-q", "w5", "--keep-ratio", "1.5"], "1.5"),
        (["-q", "w5", "--keep-ratio", "nan"], "nan"),
        (["-q", "w5", "--keep-ratio", "half"], "'--keep-ratio'"),
        (["-q", "w5", "--alpha", "-1"], "--alpha must be"),
        (["-q", "w5", "--temperature", "0"], "--temperature must be"),
        (["-q", "w5", "--thumbnail", "big"], "'whole'"),
        (["-q", "w5", "--positions", "new"], "'compact'"),
        (["-q", "w5", "--layer", "-1"], "--layer must be"),
        (["-q", "w5", "--layer", "4"], "4 language model layers"),
        (["-q", "w5", "--method", "best"], "ptp, ptp-paper, random"),
        (["-q", "w5", "--method", "random", "--alpha", "0.5"], "--alpha"),
        (["-q", "w5", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["-q", "w5", "--max-new-tokens", "999999"], "999999"),
        (["-q", "w5", "--max-new-tokens", "9999999"], "1048576"),
        (["-q", "w5", "--max-tiles", "0"], "--max-tiles"),
        (["-q", "w5", "--device", "abacus"], "--device abacus"),
        (["-q", "w5", "--device", "cuda:99"], "--device cuda:99"),
        (["-q", "w5", "--dtype", "int4"], "bfloat16"),
        (["-q", "w5", "--overlay", "/nowhere/out.png"], "--overlay"),
        (["-q", "w5", "--overlay", "out"], ".png"),
        (["-q", "w5", "--colour", "red"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(ptprune: Command, checkpoint: Path, picture: Path, arguments: list[str], says: str) -> None:
    refused(ptprune("run", picture, "--model", checkpoint, *arguments), says)


def test_no_picture_and_no_command(ptprune: Command) -> None:
    refused(ptprune("run", "-q", "w5"), "IMAGE")
    refused(ptprune("ran"), "ran")


def test_models_that_are_not_there(ptprune: Command, picture: Path, checkpoint: Path, tmp_path: Path) -> None:
    def model(name: object, says: str) -> None:
        refused(ptprune("run", picture, "-q", "w5", "--model", name), says)

    model(tmp_path / "none", "no such directory")
    model("./none", "no such directory")
    model("none", "no such directory")
    model(picture, "a file")
    model(tmp_path, "no config.json")
    model("a/ b", "a/ b")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    model(broken, "config.json cannot be read")
    (broken / "config.json").write_text("[]")
    model(broken, "config.json cannot be read")
    (broken / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    model(broken, "LlamaForCausalLM is not supported; supported: internvl, ")
    (broken / "config.json").write_text(json.dumps({"architectures": ["MllamaForConditionalGeneration"]}))
    model(broken, "through cross-attention")
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    model(broken, "llama is not supported")
    for strange in ("InternVLForConditionalGeneration", {"a": 1}, 5, [["InternVLForConditionalGeneration"]]):
        (broken / "config.json").write_text(json.dumps({"architectures": strange}))
        model(broken, "config.json")
    (broken / "config.json").write_text(json.dumps({"architectures": ["InternVLChatModel"]}))
    model(broken, "ends in -hf")
    for missing in ("model.safetensors", "tokenizer.json", "processor_config.json"):
        partial = tmp_path / f"without-{missing}"
        shutil.copytree(checkpoint, partial)
        (partial / missing).unlink()
        model(partial, "cannot be loaded")
    garbled = tmp_path / "garbled"
    shutil.copytree(checkpoint, garbled)
    weights = garbled / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    model(garbled, "cannot be loaded")
    untold = tmp_path / "untold"
    shutil.copytree(checkpoint, untold)
    (untold / "chat_template.jinja").unlink()
    model(untold, "no chat template")


def test_weights_that_do_not_fit_the_configuration(
    ptprune: Command, picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Stock loading would fill missing weights with random ones and answer nonsense."""
    directory = tmp_path / "deeper"
    shutil.copytree(checkpoint, directory)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 6
    config["text_config"].pop("layer_types", None)
    (directory / "config.json").write_text(json.dumps(config))
    refused(ptprune("run", picture, "-q", "w5", "--model", directory), "weights are missing")


class Hub:
    """Stands in for the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None, cached: Path | None = None) -> None:
        import huggingface_hub

        self.patterns: list[list[str]] = []

        def model_info(*args: Any, **kwargs: Any) -> None:
            if error is not None:
                raise error

        def snapshot_download(*args: Any, local_files_only: bool = False, **kwargs: Any) -> str:
            assert local_files_only == (error is not None), "must not try to download"
            self.patterns.append(kwargs["allow_patterns"])
            if cached is None:
                raise FileNotFoundError
            return str(cached)

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def hub_error(name: str) -> Exception:
    """An error of the hub as it comes, without the response that its constructor wants."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind)


def test_hub_out_of_reach(ptprune: Command, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, ConnectionError("no route"))
    start = time.monotonic()
    refused(ptprune("run", picture, "-q", "w5", "--model", "owner/name"), "out of reach")
    assert time.monotonic() - start < 5


def test_unknown_or_closed_on_the_hub(ptprune: Command, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, hub_error("RepositoryNotFoundError"))
    refused(ptprune("run", picture, "-q", "w5", "--model", "owner/name"), "no such model")
    Hub(monkeypatch, hub_error("GatedRepoError"))
    refused(ptprune("run", picture, "-q", "w5", "--model", "owner/name"), "hf auth login")


def test_an_earlier_download_serves_offline(
    ptprune: Command, picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, ConnectionError("no route"), cached=checkpoint)
    result = ptprune("run", picture, "-q", "w5", "--model", "owner/name", "--json", "--max-new-tokens", 1)
    assert result.code == 0
    assert json.loads(result.out)["model"] == "owner/name"


def test_cost_asks_the_hub_for_the_configuration_only(
    ptprune: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, ConnectionError("no route"), cached=checkpoint)
    assert ptprune("cost", "--model", "owner/name").code == 0
    assert hub.patterns == [["config.json"]]


def test_an_unsupported_model_is_not_downloaded(
    ptprune: Command, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    hub = Hub(monkeypatch, None, cached=tmp_path)
    refused(ptprune("run", picture, "-q", "w5", "--model", "owner/name"), "LlamaForCausalLM is not supported")
    assert hub.patterns == [["config.json"]]


def test_a_supported_model_is_downloaded_and_used(
    ptprune: Command, picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch, None, cached=checkpoint)
    assert ptprune("run", picture, "-q", "w5", "--model", "owner/name", "--max-new-tokens", 1).code == 0
    assert "*.safetensors" in hub.patterns[-1]


def test_anything_unexpected_is_not_hidden(
    ptprune: Command, picture: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is understood becomes a line; the rest keeps its traceback, and Python exits with 1."""
    from transformers import InternVLForConditionalGeneration

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a bug elsewhere")

    monkeypatch.setattr(InternVLForConditionalGeneration, "generate", broken)
    with pytest.raises(ValueError, match="a bug elsewhere"):
        ptprune("run", picture, "-q", "w5", "--model", checkpoint)
