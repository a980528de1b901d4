"""A checkpoint from anywhere: data alone is read, whatever its files ask for."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.inspection import at_most, count_weights
from ptprune.errors import SettingError
from ptprune.tiny import CHECKPOINT
from tests.cli.families import save
from tests.command import Command, command, refused
from tests.zoo import ZOO

FILES = ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Command:
    """``ask(directory)``: the outcome of ``ptprune run`` with the checkpoint there."""
    scene = Path(__file__).parents[2] / "examples" / "scene.png"
    return command(capsys, "run", str(scene), "-q", "which digit is blue?", "--max-new-tokens", "1", "--model")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the shipped checkpoint, to be changed."""
    return shutil.copytree(CHECKPOINT, tmp_path / "copy")


def edit(path: Path, change: Edit) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    change(document)
    path.write_text(json.dumps(document))


def with_code(directory: Path) -> Path:
    """Code that leaves a mark where it is run."""
    mark = directory / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nraise ImportError('ran')\n"
    for name in ("configuration_x.py", "modeling_x.py", "processing_x.py"):
        (directory / name).write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code)
    return mark


CODE = {
    "AutoConfig": "configuration_x.Config",
    "AutoModel": "modeling_x.Model",
    "AutoModelForImageTextToText": "modeling_x.Model",
    "AutoProcessor": "processing_x.Processor",
    "AutoTokenizer": [None, "processing_x.Tokenizer"],
    "AutoImageProcessor": "processing_x.Images",
}


@pytest.mark.parametrize("model_type", ["foreign", "internvl"])
def test_code_of_a_checkpoint_is_never_run(
    ask: Command, copy: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked either: transformers' question would be answered with yes."""
    mark = with_code(copy)
    monkeypatch.setattr(builtins, "input", lambda *args: pytest.fail("somebody was asked"))
    monkeypatch.setattr("transformers.dynamic_module_utils.resolve_trust_remote_code.__defaults__", (None, None))
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit(copy / name, lambda config: config.update(auto_map=CODE))
    (copy / "preprocessor_config.json").unlink()
    edit(copy / "config.json", lambda config: config.update(model_type=model_type))
    edit(copy / "config.json", lambda config: config["vision_config"].update(auto_map=CODE))
    result = ask(copy)
    assert not mark.exists()
    if model_type == "foreign":
        refused(result, "model_type 'foreign' is not that of InternVLForConditionalGeneration")
    else:
        assert result.code == 0, result.err  # a left-over says nothing about classes that transformers has


@pytest.mark.parametrize("where", [(), ("text_config",), ("vision_config",)])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["org/kernel", {"": "org/kernel@main:entry"}, "paged|org/kernel"])
def test_attention_is_from_a_fixed_list(ask: Command, copy: Path, where: tuple[str, ...], key: str, value: Any) -> None:
    def change(config: dict[str, Any]) -> None:
        for name in where:
            config = config[name]
        config[key] = value

    edit(copy / "config.json", change)
    refused(ask(copy), "org/kernel", "sdpa or eager or flash_attention_2")


def test_attention_that_users_ask_for_is_from_the_list(ask: Command) -> None:
    for name in ("org/kernel", "kernels-community/flash-attn2", "flash_attention_2"):
        with pytest.raises(SettingError, match=name):
            Checkpoint.find(None).model(torch.device("cpu"), "auto", name)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pt", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_not_read_and_nobody_is_told_how(ask: Command, copy: Path, pickled: str) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / pickled)
    line = refused(ask(copy), "no model.safetensors", "hold no code")
    assert "weights_only" not in line


def test_weights_lie_beside_their_index(ask: Command, copy: Path, tmp_path: Path) -> None:
    weights = (copy / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(weights), "pytorch_model.bin", 5):
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(ask(copy), "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["text_config"].update(model_type="bert"), "text_config.model_type 'bert'"),
        (lambda c: c["text_config"].update(model_type="timm_wrapper"), "text_config.model_type 'timm_wrapper'"),
        (lambda c: c["vision_config"].update(model_type="timm_wrapper"), "vision_config.model_type 'timm_wrapper'"),
        (lambda c: c.update(vision_config="internvl_vision"), "vision_config must be an object"),
        (lambda c: c.update(transformers_weights="../x.safetensors"), "transformers_weights"),
        (lambda c: c.update(quantization_config={"quant_method": "fp8"}), "'fp8'"),
        (lambda c: c.update(dtype="load"), "'load'"),
        (lambda c: c["text_config"].update(num_hidden_layers=10**9), "num_hidden_layers"),
        (lambda c: c["text_config"].update(vocab_size=2**60), "vocab_size"),
        (lambda c: c["text_config"].update(vocab_size=2**30), "larger model than the weights"),
        (lambda c: c["text_config"].update(intermediate_size=2**30), "larger model than the weights"),
        (lambda c: c["text_config"].update(num_hidden_layers=900, layer_types=None), "larger model than the weights"),
        (lambda c: c["vision_config"].update(hidden_size=2**25), "larger model than the weights"),
        (lambda c: c["vision_config"].update(image_size=[2**24, 2**24]), "larger model than the weights"),
        (lambda c: c["vision_config"].update(layer_norm_eps=float("nan")), "layer_norm_eps"),
    ],
)
def test_configurations_agree_with_family_and_weights(ask: Command, copy: Path, change: Edit, says: str) -> None:
    edit(copy / "config.json", change)
    started = time.monotonic()
    refused(ask(copy), says)
    assert time.monotonic() - started < 5


def test_an_adapter_is_not_laid_over_the_weights(ask: Command, copy: Path) -> None:
    (copy / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    refused(ask(copy), "adapter")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("generation_config.json", lambda c: c.update(num_return_sequences=10**6), "num_return_sequences"),
        ("generation_config.json", lambda c: c.update(return_dict_in_generate=True), "return_dict_in_generate"),
        ("generation_config.json", lambda c: c.update(stop_strings=["a"]), "stop_strings"),
        ("generation_config.json", lambda c: c.update(eos_token_id="</s>"), "eos_token_id"),
        ("processor_config.json", lambda c: c.update(image_seq_length=10**9), "image_seq_length"),
        ("processor_config.json", lambda c: c["image_processor"].update(max_patches=10**6), "max_patches"),
        ("processor_config.json", lambda c: c["image_processor"].update(size={"height": 10**6, "width": 64}), "height"),
        ("processor_config.json", lambda c: c["image_processor"].update(image_std=[0, 1, 1]), "image_std"),
        ("tokenizer_config.json", lambda c: c.update(vocab_file="/etc/passwd"), "vocab_file names a file elsewhere"),
    ],
)
def test_other_files_ask_for_what_there_is(ask: Command, copy: Path, name: str, change: Edit, says: str) -> None:
    edit(copy / name, change)
    refused(ask(copy), says)


@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("depth", [100, 100_000])
def test_deeply_nested_json(ask: Command, copy: Path, name: str, depth: int) -> None:
    (copy / name).write_text('{"a":' * depth + "1" + "}" * depth)
    refused(ask(copy), name)


@pytest.mark.parametrize(
    "name", ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[]", b"5", b"{", b'{"a": ' + b"9" * 5000 + b"}", b"null", b'"x"'])
def test_json_that_is_none(ask: Command, copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    refused(ask(copy), name)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_a_pipe_is_no_file(ask: Command, copy: Path) -> None:
    (copy / "config.json").unlink()
    os.mkfifo(copy / "config.json")
    refused(ask(copy), "no config.json")


def test_looking_costs_milliseconds() -> None:
    """Of this process's own time; the whole load takes hundreds."""
    checkpoint = Checkpoint.find(None)
    times = []
    for _ in range(10):
        started = time.process_time()
        checkpoint._clean()
        with at_most(count_weights(checkpoint.directory, False)):
            pass
        times.append(time.process_time() - started)
    assert min(times) < 0.005


@pytest.mark.parametrize("name", ZOO)
def test_every_family_is_still_loaded(name: str, tmp_path: Path) -> None:
    """With its own class, and the numbers that were saved."""
    specimen = ZOO[name]
    directory = save(specimen, tmp_path / "model")
    loaded = Checkpoint.find(str(directory)).model(torch.device("cpu"), "auto")
    assert type(loaded) is type(specimen.build())
    weights = loaded.state_dict()
    for key, value in specimen.build().state_dict().items():
        assert torch.equal(weights[key], value), key


def test_found_by_fuzzing(ask: Command, copy: Path) -> None:
    """Files that do not belong together: loaded without an error, and then no answer."""
    whole = {name: (copy / name).read_bytes() for name in ("processor_config.json", "tokenizer_config.json")}

    def wrong(name: str, change: Edit, says: str) -> None:
        edit(copy / name, change)
        refused(ask(copy), says)
        (copy / name).write_bytes(whole[name])

    def images(**values: Any) -> Edit:
        return lambda config: config["image_processor"].update(values)

    wrong("processor_config.json", images(size={"height": 64, "width": 6}), "files belong together")
    wrong("processor_config.json", images(size={"height": 640, "width": 640}), "640 x 640")
    wrong("tokenizer_config.json", lambda config: config.update(model_max_length=[None]), "model_max_length")
    wrong("tokenizer_config.json", lambda config: config.update(end_image_token="../x"), "files belong together")
    token = {"content": "<x>", "dtype": 5}
    wrong("tokenizer_config.json", lambda config: config.update(pad_token=token), "pad_token is no token")
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")  # shows no picture
    refused(ask(copy), "files belong together")
