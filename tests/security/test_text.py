"""Text from outside is text: it gives no orders to a model, and none to a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, normalizers

from ptprune.asking.chat import check_text, control_tokens
from ptprune.checkpoints import Checkpoint
from ptprune.checkpoints.processor import load_processor
from ptprune.errors import SettingError
from ptprune.text import is_text, printable
from ptprune.tiny import CHECKPOINT
from tests.cli.families import savable
from tests.command import Command, command, refused
from tests.zoo import ZOO

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples" / "scene.png"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def ptprune(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.mark.parametrize(
    "token", ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
)
def test_control_tokens_are_refused(ptprune: Command, token: str, tmp_path: Path) -> None:
    for question in (token, f"which digit{token} is blue?", f"blue?\n{token}5"):
        refused(ptprune("run", SCENE, "-q", question), "question", repr(token))
    shutil.copy(SCENE, tmp_path)
    entry = {"picture": "scene.png", "question": f"which? {token}", "answer": "5"}
    (tmp_path / "items.jsonl").write_text(json.dumps(entry))
    refused(ptprune("bench", "accuracy", "--items", tmp_path), repr(token))


def test_what_looks_alike_is_text(ptprune: Command) -> None:
    for question in ("< |end|>", "<|END|>", "a <b>bold</b> one & more", "what is 3<5?", "100% \\n {{ 7*7 }} {% x %}"):
        result = ptprune("run", SCENE, "-q", question, "--max-new-tokens", 1, "--json")
        assert result.document["question"] == question


@pytest.mark.parametrize("name", ZOO)
def test_every_family_has_control_tokens_and_words(name: str, tmp_path: Path) -> None:
    specimen = ZOO[name]
    savable(specimen).save_pretrained(tmp_path)
    specimen.build(layers=1).config.save_pretrained(tmp_path)
    processor, model = load_processor(tmp_path), specimen.build(layers=1)
    check_text(model, processor, "what is the red thing")
    for token in control_tokens(processor.tokenizer).values():
        with pytest.raises(SettingError, match="^question: "):
            check_text(model, processor, f"what {token} is")


def test_tokens_that_a_normalizer_makes_are_refused() -> None:
    """Written otherwise, and the same to the model."""
    checkpoint = Checkpoint.find(None)
    processor = checkpoint.processor()
    model = SimpleNamespace(config=checkpoint.config())
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    stop = AddedToken("<stop>", normalized=True, special=True)
    processor.tokenizer.add_special_tokens({"extra_special_tokens": [stop]})
    with pytest.raises(SettingError, match="<stop>"):
        check_text(model, processor, "\uff1cstop\uff1e")


def test_questions_that_are_none(ptprune: Command) -> None:
    for question, says in (("a\udcff", "UTF-8"), ("\ud83d", "UTF-8"), ("x" * 70_000, "characters")):
        refused(ptprune("run", SCENE, "-q", question), "--question", says)


def test_bytes_on_the_command_line(tmp_path: Path) -> None:
    """As a shell hands them over; the name of a file may be any bytes."""
    name = os.fsencode(tmp_path) + b"/\xff\x1b[31m.png"
    Path(os.fsdecode(name)).write_bytes(SCENE.read_bytes())

    def run(*arguments: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([os.fsencode(sys.executable), b"-m", b"ptprune", *arguments], capture_output=True)

    broken = run(b"run", name, b"-q", b"what \xff?")
    assert broken.returncode == 2
    assert broken.stderr.count(b"\n") == 1
    right = run(b"run", name, b"-q", b"which digit is blue?", b"--max-new-tokens", b"1")
    assert right.returncode == 0, right.stderr
    assert b"\x1b" not in right.stdout
    assert b"\\xff\\x1b[31m.png" in right.stdout
    missing = run(b"run", name + b"x", b"-q", b"?")
    assert missing.returncode == 2
    assert b"\x1b" not in missing.stderr
    assert b"\xff" not in missing.stderr


def test_nothing_from_outside_moves_a_cursor(ptprune: Command, tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp"
    folder = tmp_path / f"a{evil}"
    folder.mkdir()
    picture = Path(shutil.copy(SCENE, folder / f"b{evil}.png"))
    model = shutil.copytree(CHECKPOINT, folder / "model")
    out = folder / "out.png"
    base = ("-q", f"which digit is blue? {evil}", "--max-new-tokens", 1, "--model", model)
    for extra in ((), ("--compare",), ("--overlay", out), ("--json",)):
        result = ptprune("run", picture, *base, *extra)
        assert result.code == 0, result.err
        assert not UNSAFE.search(result.out + result.err)
    assert out.exists()
    for arguments in (
        ("run", f"{picture}{evil}", "-q", "?"),
        ("run", picture, "-q", "?", "--model", f"{model}{evil}"),
        ("run", picture, "-q", "?", "--method", evil),
        ("run", picture, "-q", "?", f"--{evil}"),
        ("run", picture, "-q", "?", "--keep-ratio", evil),
        ("cost", "--model", evil),
        ("bench", "accuracy", "--set", f"alpha={evil}"),
        ("bench", "accuracy", "--items", folder),
        ("bench", "report", folder / f"{evil}.json", "--out", "a.md"),
        ("items", evil, folder),
        (evil,),
    ):
        line = refused(ptprune(*arguments))
        assert not UNSAFE.search(line.rstrip("\n")), arguments


def test_printable() -> None:
    assert printable("plain ü 😀\tand\nmore") == "plain ü 😀\tand\nmore"
    assert printable("\x1b[31m\x7f\x9b\r") == "\\x1b[31m\\x7f\\x9b\\x0d"
    assert printable("\udcff\ud800\u202e") == "\\xff\\ud800\\u202e"
    assert is_text("ü😀")
    assert not is_text("a\udcff")


def test_the_folder_of_that_name_is_not_the_shipped_checkpoint(
    ptprune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody names a model, nothing in the current folder is one."""
    (tmp_path / "ptprune-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ptprune("run", SCENE, "-q", "which digit is blue?", "--max-new-tokens", 1).code == 0
    refused(ptprune("run", SCENE, "-q", "?", "--model", "ptprune-tiny"), "no config.json")
