"""``models``, ``methods`` and ``cost``, and the command as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import ptprune as package
from ptprune.cli.listings import row
from ptprune.cost import Encoding, Prompt, pruned_cost, unpruned_cost
from ptprune.families import FAMILIES, UNSUPPORTED
from ptprune.methods import METHODS
from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TILE_SCORES, TOKEN_SCORES
from ptprune.shapes import SHAPES, ModelShape
from tests.command import Command


def test_models(ptprune: Command) -> None:
    document = json.loads(ptprune("models", "--json").out)
    assert [family["name"] for family in document["families"]] == list(FAMILIES)
    people = ptprune("models")
    assert people.code == 0
    assert max(map(len, people.out.splitlines())) <= 80
    blocks = people.out.split("\n\n")
    assert len(blocks) == len(FAMILIES) + 1
    for block, family, told in zip(blocks, FAMILIES.values(), document["families"], strict=False):
        assert block.startswith(f"{family.name}\n")
        text = " ".join(block.split())
        assert f"class {family.model_class} example {family.example} " in text
        assert (told["model_class"], told["example"]) == (family.model_class, family.example)
        assert told["stages"] == family.stages
        for level, line in family.stages.items():
            assert f" {level} {line}" in text


def test_names_are_not_broken_at_hyphens() -> None:
    name = "-".join(["part"] * 8)
    assert row("example", f"such as {name} and {name}").split("\n")[1] == " " * 15 + f"{name}"


def test_models_that_are_refused(ptprune: Command) -> None:
    document = json.loads(ptprune("models", "--json").out)
    refused = {one["model_class"]: one["reason"] for one in document["refused"]}
    assert "cross-attention" in refused["MllamaForConditionalGeneration"]
    assert "DataParallel" not in refused  # a wrapper, no model
    assert refused == {name: UNSUPPORTED[name] for name in refused}
    last = " ".join(ptprune("models").out.split("\n\n")[-1].split())
    assert all(f"{name} {reason}" in last for name, reason in refused.items())


def test_methods(ptprune: Command) -> None:
    document = json.loads(ptprune("methods", "--json").out)
    assert [method["name"] for method in document["methods"]] == list(METHODS)
    assert all(method["about"] for method in document["methods"])
    assert set(document["methods"][0]["settings"]) == {setting.name for setting in fields(METHODS["ptp"])}
    registries = (REGION_SCORES, TOKEN_SCORES, INSTRUCTION_SCORES, TILE_SCORES)
    assert {level: list(scores) for level, scores in document["scores"].items()} == {
        registry.level: list(registry.names) for registry in registries
    }
    assert all(about for scores in document["scores"].values() for about in scores.values())
    methods, *levels, settings = ptprune("methods").out.split("\n\n")
    listed = " ".join(settings.split())
    assert all(f"{one.name}={one.default}" in listed for cls in METHODS.values() for one in fields(cls))
    assert [line.split()[0] for line in methods.splitlines()] == list(METHODS)
    for registry, level in zip(registries, levels, strict=True):
        heading, *lines = level.splitlines()
        assert registry.level in heading
        assert [line.split()[0] for line in lines] == list(registry.names)


def test_cost_of_a_known_shape(ptprune: Command) -> None:
    result = ptprune("cost", "--model", "internvl2-2b", "--text-tokens", 136, "--layer", 0, "--json")
    document = json.loads(result.out)
    shape, prompt = SHAPES["internvl2-2b"], Prompt(12, 136)
    assert document["unpruned"] == unpruned_cost(shape, prompt).to_dict()
    assert document["pruned"] == pruned_cost(shape, prompt, 0.5, layer=0).to_dict()
    assert document["visual_tokens"] == {"before": 3328, "between": None, "after": 1664}
    assert document["sequence_length"] == {"before": 3464, "after": 1800}


def test_cost_of_a_checkpoint_needs_no_weights(ptprune: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    document = json.loads(ptprune("cost", "--model", tmp_path, "--tiles", 3, "--json").out)
    assert document["visual_tokens"] == {"before": 16, "between": None, "after": 8}
    from transformers import AutoConfig

    shape = ModelShape.from_config(AutoConfig.from_pretrained(tmp_path))
    assert document["unpruned"]["prefill"]["macs"] == unpruned_cost(shape, Prompt(3, 64)).prefill


def test_cost_of_the_shipped_checkpoint(ptprune: Command) -> None:
    assert ptprune("cost", "--model", "ptprune-tiny", "--json").code == 0


def test_cost_of_two_cuts(ptprune: Command) -> None:
    few = ("cost", "--model", "internvl2-2b", "--keep-ratio", 0.1)
    shape, prompt = SHAPES["internvl2-2b"], Prompt(12, 64)
    for given, second in (((), 13), (("--second-layer", 8), 8)):
        document = json.loads(ptprune(*few, *given, "--json").out)
        assert (document["second_layer"], document["visual_tokens"]["between"]) == (second, 832)
        expected = pruned_cost(shape, prompt, 0.1, 2, stages=[(2, 832), (second, 333)])
        assert document["pruned"] == expected.to_dict()
    assert "3328 -> 832 -> 333 visual tokens before layers 2 and 13" in ptprune(*few).out
    once = json.loads(ptprune(*few, "--first-ratio", 0, "--json").out)
    assert (once["second_layer"], once["visual_tokens"]["between"]) == (None, None)
    assert once["pruned"] == pruned_cost(shape, prompt, 0.1, 2).to_dict()


def test_cost_where_tiles_are_background(ptprune: Command) -> None:
    """Their tokens are there to be kept, so K is not capped, and patches are dropped by their number."""
    spared = ("cost", "--model", "internvl3-1b", "--keep-ratio", 0.75, "--tiles-encoded", 7, "--vision-layer", 12)
    document = json.loads(ptprune(*spared, "--background", "--json").out)
    shape, prompt, encoding = SHAPES["internvl3-1b"], Prompt(12, 64), Encoding(7, 12, 1.25, background=True)
    assert document["pruned"] == pruned_cost(shape, prompt, 0.75, 2, encoding=encoding).to_dict()
    assert document["visual_tokens"] == {"before": 3328, "between": None, "after": 2496}
    assert json.loads(ptprune(*spared, "--json").out)["visual_tokens"]["after"] == 8 * 256


def test_cost_for_people(ptprune: Command) -> None:
    result = ptprune("cost", "--model", "internvl2-2b", "--text-tokens", 136)
    assert "3328 -> 1664 visual tokens" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["prefill", "6.41", "T", "3.32", "T", "0.52"] in rows
    assert ["KV", "cache", "325", "MiB", "169", "MiB", "0.52"] in rows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "internvl9-1t"], "internvl2-2b"),
        (["--model", "internvl2-2b", "--keep-ratio", "0"], "--keep-ratio must be in (0, 1]"),
        (["--model", "internvl2-2b", "--layer", "24"], "--layer must be in 0..23"),
        (["--model", "internvl2-2b", "--tiles", "0"], "--tiles"),
        (["--model", "internvl2-2b", "--second-layer", "2"], "--second-layer must be over layer, which is 2"),
    ],
)
def test_cost_refusals(ptprune: Command, arguments: list[str], says: str) -> None:
    result = ptprune("cost", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert says in result.err


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptprune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_process_prints_json_and_nothing_else(checkpoint: Path, picture: Path) -> None:
    done = process("run", picture, "-q", "w5", "--model", checkpoint, "--compare", "--json", "--max-new-tokens", 2)
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["visual_tokens"] == {"before": 28, "after": 14}


def test_a_process_fails_with_one_line(tmp_path: Path) -> None:
    done = process("run", tmp_path / "none.png", "-q", "w5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ptprune: {tmp_path}/none.png: no such file; give the path of a picture\n"


def test_help_needs_neither_torch_nor_transformers() -> None:
    """The command line's own modules import nothing heavy; the package's ``__init__`` is stood in for."""
    code = (
        "import sys, types; package = types.ModuleType('ptprune'); package.__path__ = sys.argv[1:]\n"
        "sys.modules['ptprune'] = package\n"
        "from ptprune.cli import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit as left: assert not left.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *package.__path__], check=True, timeout=60, capture_output=True)


def test_help_names_every_command(ptprune: Command) -> None:
    result = ptprune("--help")
    assert result.code == 0
    for command in ("run", "models", "methods", "cost"):
        assert f" {command} " in result.out
    assert ptprune().code == 2
