"""Outputs take the place that was asked for, whole, and no other; lists of items stay in their folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ptprune.bench.items.folder import visual_in
from ptprune.checkpoints.checkpoint import locate
from ptprune.errors import UserError
from ptprune.files import append_to, check_writable, inside, make_folder, read_json, replacing, write_whole
from ptprune.results.file import fingerprint
from ptprune.tiny import CHECKPOINT
from tests.command import Command, command, refused

ROOT = Path(__file__).parents[2]
ASK = ("-q", "which digit is blue?", "--max-new-tokens", 1)


@pytest.fixture
def ptprune(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "examples" / "scene.png", tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.png", "./a.png", "link.png", "hard.png", "sub/../a.png"])
def test_a_picture_is_not_drawn_over(ptprune: Command, picture: Path, name: str) -> None:
    (picture.parent / "sub").mkdir()
    (picture.parent / "link.png").symlink_to(picture)
    os.link(picture, picture.parent / "hard.png")
    before = picture.read_bytes()
    refused(ptprune("run", picture, *ASK, "--overlay", picture.parent / name), "--overlay", "input")
    assert picture.read_bytes() == before


def test_one_of_several_pictures_is_not_drawn_over(ptprune: Command, picture: Path) -> None:
    second = picture.rename(picture.with_name("a-2.png"))
    shutil.copy(second, picture)
    refused(ptprune("run", picture, second, *ASK, "--overlay", picture), "a-2.png", "input")


def test_a_link_is_replaced_and_not_followed(ptprune: Command, picture: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    target = tmp_path / "out.png"
    target.symlink_to(outside)
    assert ptprune("run", picture, *ASK, "--overlay", target).code == 0
    assert outside.read_text() == "mine"
    assert not target.is_symlink()
    assert Image.open(target).format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out.png", "precious.txt"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def broken() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "new")
    assert path.read_text() == "new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_waits_where_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who knows the name in advance could put a link there."""
    monkeypatch.setattr("secrets.token_hex", lambda size: "known")
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".known.json").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "target").read_text() == "mine"


def test_folders_and_logs_are_no_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a link"):
        make_folder(tmp_path / "link", "--out link")
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere" / "log")
    with pytest.raises(OSError, match=r"link|loop|symbolic"):
        append_to(tmp_path / "log")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_page_of_results_writes_over_none_of_them(ptprune: Command, tmp_path: Path) -> None:
    results = tmp_path / "page.md"
    shutil.copy(ROOT / "benchmarks" / "results" / "accuracy-crowded.json", results)
    before = results.read_bytes()
    refused(ptprune("bench", "report", results, "--out", results), "input")
    assert results.read_bytes() == before
    json_file = Path(shutil.copy(results, tmp_path / "a.json"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
    refused(ptprune("bench", "report", json_file, "--out", tmp_path / "new.md"), "a link")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def items(folder: Path, *pictures: str) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"picture": name, "question": "which digit is blue?", "answer": "5"}) for name in pictures]
    (folder / "items.jsonl").write_text("\n".join(lines))
    return folder


def test_a_list_stays_in_its_folder(ptprune: Command, picture: Path, tmp_path: Path) -> None:
    """The same words, whether there is such a file or not."""
    folder = items(tmp_path / "set")
    (folder / "link.png").symlink_to(picture)
    (folder / "up").symlink_to(tmp_path)
    said = set()
    there, missing = (
        ("../a.png", str(picture), "link.png", "up/a.png", "/etc/passwd"),
        ("../b.png", "/b.png", "up/b.png"),
    )
    for name in (*there, *missing):
        items(folder, name)
        line = refused(ptprune("bench", "accuracy", "--items", folder), "line 1", "outside of its folder")
        said.add(line.replace(name, "NAME"))
        with pytest.raises(UserError, match="outside"):
            visual_in(folder)({"picture": name})
    assert len(said) == 1
    quick = ("--items-outside", "--methods", "ptp", "--ratios", ".5", "--json", "--max-new-tokens", 1)
    assert ptprune("bench", "accuracy", "--items", items(folder, "../a.png"), *quick).document["items"] == 1
    refused(ptprune("bench", "accuracy", "--items-outside"), "--items")


def test_results_are_not_written_over_items(ptprune: Command, picture: Path, tmp_path: Path) -> None:
    folder = items(tmp_path / "set", "a.png")
    shutil.copy(picture, folder / "a.png")
    refused(ptprune("bench", "accuracy", "--items", folder, "--plot", folder / "a.png"), "input")
    refused(ptprune("bench", "accuracy", "--items", folder, "--out", folder / "items.jsonl"), "input")
    both = tmp_path / "x.png"
    refused(ptprune("bench", "accuracy", "--items", folder, "--out", both, "--plot", both), "same file")


@pytest.mark.parametrize("name", ["a\0b", "../" * 50 + "a", "x" * 5000, "loop"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError):
        visual_in(tmp_path)({"picture": name})
    if "\0" in name:
        with pytest.raises(UserError, match="not a file name"):
            inside(tmp_path, name)
    if "\0" not in name and name != "loop":
        with pytest.raises(UserError, match="--out"):
            check_writable(tmp_path / name / "b", "--out")
    for model in (name, "~nobody-of-that-name/x", "x" * 5000):
        with pytest.raises((ValueError, UserError)):
            locate(f"./{model}")


def test_pipes_are_not_waited_for(ptprune: Command, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("items.jsonl", "a.png", "results.json", "out.png"):
        os.mkfifo(folder / name)
    refused(ptprune("bench", "accuracy", "--items", folder), "not a file")
    refused(ptprune("run", folder / "a.png", *ASK), "not a file")
    refused(ptprune("bench", "report", folder / "results.json", "--out", tmp_path / "a.md"), "not a file")
    scene = ROOT / "examples" / "scene.png"
    refused(ptprune("run", scene, *ASK, "--overlay", folder / "out.png"), "not a file")
    copy = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    os.mkfifo(copy / "extra.json")
    fingerprint(copy)


@pytest.mark.parametrize("content", ["[" * 99 + "]" * 99, "[" * 10**5, "\xff", "{", "9" * 5000])
def test_json_that_cannot_be_used_is_a_line(tmp_path: Path, content: Any) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json is") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="larger"):
        read_json(tmp_path / "a.json", 0)
