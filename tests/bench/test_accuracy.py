"""``ptprune bench accuracy`` on the shipped checkpoint, against slow formulas and against itself after a kill."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ptprune import PyramidTokenPruning
from ptprune.asking.answer import ask
from ptprune.asking.chat import make_prompt
from ptprune.bench import accuracy, examinee, items, plots, statistics
from ptprune.bench.candidates import Candidate, ablate, compare, encode
from ptprune.bench.examinee import Views
from ptprune.bench.items.folder import folder_items
from ptprune.bench.items.scenes import scene_items
from ptprune.bench.work import share_of_unpruned
from ptprune.checkpoints import Checkpoint
from ptprune.cli.console import quiet_libraries
from ptprune.encoding import EncoderSettings
from ptprune.methods import METHODS
from ptprune.pruner import TokenPruner
from ptprune.results.rows import AccuracyRow
from ptprune.shapes import ModelShape
from ptprune.tiny import CHECKPOINT
from tests.command import Command, command, refused

scenes = pytest.mark.skipif(
    not all(find_spec(name) for name in ("sklearn", "skimage", "matplotlib")), reason="needs the extra: scenes"
)
QUICK = ("--methods", "ptp", "--ratios", ".25")
KEYS = ["method", "keep_ratio", "settings", "accuracy", "low", "high", "retention", "by_kind", "kept_tokens"]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Command:
    """``bench("--limit", 3, ...)``."""
    return command(capsys, "bench", "accuracy")


@pytest.fixture(scope="session")
def subject() -> examinee.Examinee:
    quiet_libraries()
    checkpoint = Checkpoint.find(None)
    return examinee.Examinee(checkpoint.model(torch.device("cpu"), "auto"), checkpoint.processor(), batch=4)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of noise, four questions; what the model says to the second is its answer there."""
    directory = tmp_path_factory.mktemp("items")
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(192, 128), (64, 64), (150, 400)]):
        noise = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{number}.png")
    lines = [
        {"picture": "0.png", "question": "is there a red star?", "answer": "perhaps", "kind": "exists"},
        {"picture": "1.png", "question": "is there a red star?", "answer": " no ", "kind": "exists"},
        {"picture": "2.png", "question": "how many digits are there?", "answer": "99"},
        {"picture": "0.png", "question": "what colour is the 7?", "answer": "pink", "kind": "colour", "note": 1},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    (directory / "items.jsonl").write_text(text + "\n")
    return directory


# --- statistics -------------------------------------------------------------------------------------------------------


def slow_interval(values: list[int]) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        drawn = generator.integers(len(values), size=len(values))
        means.append(100 * sum(values[number] for number in drawn) / len(values))
    means.sort()

    def percentile(share: float) -> float:
        at = share * (len(means) - 1)
        below = int(at)
        return means[below] + (at - below) * (means[min(below + 1, len(means) - 1)] - means[below])

    return percentile(0.025), percentile(0.975)


def test_intervals_and_paired_differences_against_loops() -> None:
    generator = np.random.default_rng(5)
    for number in (1, 7, 60):
        one, other = generator.integers(2, size=(2, number))
        assert statistics.interval(one == 1) == pytest.approx(slow_interval(one.tolist()), abs=1e-9)
        gain = statistics.difference(one == 1, other == 1)
        low, high = slow_interval([a - b for a, b in zip(one.tolist(), other.tolist(), strict=True)])
        expected = {"difference": 100 * (one.sum() - other.sum()) / number, "low": low, "high": high}
        assert gain.model_dump() == pytest.approx(expected, abs=0.0051)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = [low <= 70 <= high for low, high in (statistics.interval(generator.random(80) < 0.7) for _ in range(400))]
    assert 0.91 < np.mean(covered) < 0.98


def row(method: str, right: str, ratio: float | None = 0.5, **given: Any) -> AccuracyRow:
    return accuracy.row_of(Candidate(method, ratio, given), right, 5.0, ["a", "b", "", "a"][: len(right)])


def test_what_follows_from_which_items_were_right() -> None:
    measured = [
        row("none", "1110", 1.0),
        row("ptp", "1100", alpha=0.25),
        row("ptp", "1110", alpha=0.0),
        row("random", "0001"),
        row("random", "1111", 0.25),
    ]
    finished = accuracy.finish(measured, Candidate("ptp", None, {"alpha": 0.25}).settings)
    assert [r.accuracy for r in finished] == [75, 50, 75, 25, 100]
    assert [r.retention for r in finished] == [100, 66.67, 100, 33.33, 133.33]
    assert finished[0].by_kind == {"a": 50, "b": 100}
    assert [r.vs_ptp and r.vs_ptp.difference for r in finished] == [None, None, 25, -25, None]
    nothing = accuracy.finish([row("none", "00", 1.0), row("ptp", "01")], {})
    assert [r.retention for r in nothing] == [None, None]


# --- what is measured -------------------------------------------------------------------------------------------------


def test_work_counts_the_tokens_that_the_model_really_reads(
    subject: examinee.Examinee, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = folder_items(folder, None)
    read = []
    for item in asked:
        inputs = make_prompt(subject.model, subject.processor, [item.open()], item.question, {})
        visual = subject.visual_tokens(inputs["input_ids"])
        read.append((visual, visual, inputs["input_ids"].shape[1] - visual))
    shape = ModelShape.from_config(subject.model.config)
    for pruner in (METHODS["fastv"](keep_ratio=0.25), METHODS["tops"](keep_ratio=0.25)):
        assert subject.work(asked, pruner) == share_of_unpruned(shape, read, pruner) < 1
    assert subject.work(asked) == 1
    assert subject.work(asked, PyramidTokenPruning(coverage=0.5)) is None, "the scores choose how many"
    alone = Views(subject).of("thumbnail", None)
    assert subject.work(asked, None, alone) < 0.6
    monkeypatch.setattr(subject.model.config, "model_type", "gemma3")
    assert subject.work(asked) is None


@scenes
def test_batches_answer_as_single_prompts_do(subject: examinee.Examinee) -> None:
    asked = scene_items("dev", 6)
    for pruner in (None, PyramidTokenPruning(keep_ratio=0.1)):
        given, kept, *_ = subject.answers(asked, pruner)
        single, tokens = [], []
        for item in asked:
            inputs = make_prompt(subject.model, subject.processor, [item.open()], item.question, {})
            single.append(ask(subject.model, subject.processor, inputs, pruner, 2).text)
            before = int((inputs["input_ids"] == subject.model.config.image_token_id).sum())
            tokens.append(before if pruner is None else len(pruner.report.images[0].kept))  # type: ignore[union-attr]
        assert given == single
        assert kept == pytest.approx(sum(tokens) / len(tokens))


@scenes
def test_a_picture_is_encoded_once_for_all_methods_that_ask_the_same_of_the_tower(
    subject: examinee.Examinee, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(subject, tile_cache=None)  # with a cache of its own
    tower, rows = one.model.model.vision_tower, []
    original = tower.forward
    monkeypatch.setattr(tower, "forward", lambda *args, **named: rows.append(1) or original(*args, **named))
    items = scene_items("dev", 3)
    runs = []
    for pruner in (PyramidTokenPruning(keep_ratio=0.5), PyramidTokenPruning(keep_ratio=0.1), METHODS["fastervlm"]()):
        before = len(rows)
        answers = one.answers(items, pruner)
        runs.append(len(rows) - before)
        assert answers.texts == replace(subject, tile_cache=None).answers(items, pruner).texts
        del rows[before + runs[-1] :]
    assert runs[0] > 0
    assert runs[1:] == [0, 0]
    assert one.answers(items, METHODS["divprune"]()).texts, "it asks for no attention"
    assert len(rows) > runs[0]


def test_scenes_follow_from_their_number() -> None:
    few, more = scene_items("test", 2), scene_items("test", 4)
    assert items.digest(more[:2]) == items.digest(few)
    assert len({item.digest for item in more}) == 4
    assert items.digest(scene_items("dev", 2)) != items.digest(few)
    for change in ({"digest": "0"}, {"question": "?"}, {"answer": "?"}, {"kind": "?"}):  # each of them counts
        assert items.digest([few[0], replace(few[1], **change)]) != items.digest(few)


@pytest.mark.parametrize("size", [(256, 192), (64, 640), (64, 64), (1000, 90)])
@pytest.mark.parametrize("ratio", [0.75, 0.3, 0.05, 1.0])
def test_downsampling_to_at_most_the_budget(subject: examinee.Examinee, size: tuple[int, int], ratio: float) -> None:
    view = Views(subject).of("downsample", ratio)(size)
    full, tokens = subject.tokens(size), subject.tokens(size, view)
    budget = TokenPruner(keep_ratio=ratio).num_kept(full)
    options = subject.processor.image_processor
    counts = {number: subject.tokens(size, examinee.View((("max_patches", number),))) for number in range(1, 13)}
    assert options.max_patches == 12
    if ratio == 1:
        assert view == examinee.AS_IT_IS
    elif budget >= 16:
        assert tokens == max(count for count in counts.values() if count <= budget)
        assert view.size is None
    else:
        assert tokens == 16  # one tile, of a picture that is so much smaller
        assert view.size == (round(64 * (budget / 16) ** 0.5),) * 2


def test_downsampling_where_there_are_no_tiles(subject: examinee.Examinee, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for Qwen-VL: a token is 28 x 28 pixels."""
    monkeypatch.setattr("ptprune.bench.examinee.has_tiles", lambda processor: False)

    def tokens(size: tuple[int, int], view: examinee.View = examinee.AS_IT_IS) -> int:
        width, height = view.size or size
        return round(width / 28) * round(height / 28)

    monkeypatch.setattr(subject, "tokens", tokens)
    for size in [(640, 480), (300, 1200)]:
        for ratio in (0.75, 0.1):
            view = Views(subject).of("downsample", ratio)(size)
            assert 0.85 * ratio * tokens(size) <= tokens(size, view) <= ratio * tokens(size)
            assert view.size is not None
            assert view.size[0] / view.size[1] == pytest.approx(size[0] / size[1], rel=0.02)


@pytest.mark.parametrize("size", [(256, 192), (64, 640), (64, 64), (1000, 90)])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.3, 0.01])
def test_fewer_tiles_come_near_the_share(subject: examinee.Examinee, size: tuple[int, int], share: float) -> None:
    full, tokens = subject.tokens(size), subject.tokens(size, Views(subject).fewer(share)(size))
    counts = {subject.tokens(size, examinee.View((("max_patches", number),))) for number in range(1, 13)}
    assert tokens in counts
    assert abs(tokens - share * full) == min(abs(count - share * full) for count in counts)


def test_the_rows_of_a_table_of_what_is_encoded() -> None:
    arms = {(arm.variant, arm.method): arm for arm in encode([0.5], {"alpha": 0.25}, 4, True) if arm.variant}
    changed = {variant: arm.settings for (variant, _), arm in arms.items()}
    plain = changed.pop("ptp")
    own = {name: {n: v for n, v in of.items() if n not in plain} for name, of in changed.items()}
    assert own == {
        "salient tiles": {"tiles": "salient"},
        "salient tiles, others as background": {"tiles": "salient", "left_out": "background"},
        "patches": {"vision_layer": 2},
        "salient tiles and patches": {"tiles": "salient", "vision_layer": 2},
        "random tiles": {"tiles": "salient", "tile_score": "random"},
        "fewer tiles": {},
    }
    assert [method for _, method in arms] == ["ptp"] * 6 + ["fewer-tiles"]
    assert len({arm.key for arm in arms.values()}) == 7
    few = {arm.variant for arm in encode([0.5], {}, None, False)}
    assert few == {"", "ptp", "salient tiles", "salient tiles, others as background", "random tiles"}


def test_the_rows_of_a_table() -> None:
    def names(arms: list[Candidate]) -> list[tuple[str, float | None]]:
        return [(arm.method, arm.keep_ratio) for arm in arms]

    both = [("random", 0.5), ("random", 0.1), ("downsample", 0.5), ("downsample", 0.1)]
    start = [("none", 1.0), ("thumbnail", None)]
    assert names(compare(["random", "none"], [0.5, 0.1], {})) == start + both
    assert names(compare(["fastv", "ptp"], [0.5], {})) == start + [
        ("ptp", 0.5), ("fastv", 0.5), ("random", 0.5), ("downsample", 0.5),
    ]  # fmt: skip
    assert names(compare(["random", "fastv"], [0.5], {}))[2:] == [(m, 0.5) for m in ("fastv", "random", "downsample")]
    ablation = ablate([0.5], {"alpha": 0.25})
    assert names(ablation)[:5] == start + [("ptp", 0.5), ("random", 0.5), ("downsample", 0.5)]
    variants = {arm.name: arm.settings for arm in ablation[5:]}
    assert variants["with region level"]["region"] == "cls-similarity"
    assert variants["without token level"]["alpha"] == 1
    assert variants["without instruction level"]["alpha"] == 0
    assert [variants[f"layer {layer}"]["layer"] for layer in range(4)] == [0, 1, 2, 3]
    assert [variants[f"temperature {t}"]["temperature"] for t in ("0.25", "0.5", "1", "2", "4")] == [0.25, 0.5, 1, 2, 4]
    assert {variants[f"thumbnail {name}"]["alpha"] for name in ("ratio", "whole")} == {0.25}
    assert [variants[f"alpha {a}"]["alpha"] for a in ("0", "0.25", "0.5", "0.75", "1")] == [0, 0.25, 0.5, 0.75, 1]


def test_all_methods_drop_before_one_layer() -> None:
    arms = compare(["ptp", "hired"], [0.5], {"ptp": {"alpha": 0.25}}, layer=3)
    assert {arm.method: arm.settings["layer"] for arm in arms if arm.pruner} == {"ptp": 3, "hired": 3, "random": 3}
    assert [arm.name for arm in arms if arm.pruner] == ["ptp alpha=0.25", "hired", "random"]
    assert {arm.key for arm in compare(["fastv"], [0.5], {}, layer=2)} == {
        arm.key for arm in compare(["fastv"], [0.5], {})
    }, "a row at a method's own layer is measured once"
    for layer, left_out in ((2, "visionzip"), (0, "pyramiddrop")):
        found = {arm.method for arm in compare(None, [0.5], {}, layer=layer) if arm.pruner}
        assert found == {name for name in METHODS if name != left_out}


# --- the command ------------------------------------------------------------------------------------------------------


@scenes
def test_resumes_after_a_kill_with_the_same_numbers(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = (*QUICK, "--split", "dev", "--limit", 4)
    whole = bench(*quick, "--out", tmp_path / "whole.json", "--json").silent.document

    answers, calls = examinee.Examinee.answers, 0

    def killed_at_the_third(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answers(self, *args, **kwargs)

    part = tmp_path / "part.json"
    monkeypatch.setattr(examinee.Examinee, "answers", killed_at_the_third)
    assert bench(*quick, "--out", part).code == 130
    assert json.loads(part.read_text())["results"] == whole["results"][:2]
    resumed = bench(*quick, "--out", part, "--json").silent.document
    assert calls == 3 + 3  # of five rows, two were there
    assert resumed == whole
    assert part.read_bytes() == (tmp_path / "whole.json").read_bytes()

    monkeypatch.setattr(Checkpoint, "model", None)  # all rows are there: no weights are needed
    assert bench(*quick, "--out", part, "--json").silent.document == whole
    monkeypatch.undo()

    # other settings are another row; what was there stays
    other = bench(*quick, "--set", "alpha=0", "--out", part, "--json").silent.document
    assert [r["settings"].get("alpha") for r in other["results"]] == [None, None, 0, None, None]
    kept = json.loads(part.read_text())["results"]
    assert [r["settings"].get("alpha") for r in kept] == [None, None, 0, None, None, 0.6]
    assert kept[5] == whole["results"][2]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@scenes
def test_the_json_object(bench: Command) -> None:
    document = bench(*QUICK, "--split", "dev", "--limit", 6, "--json").silent.document
    assert (document["kind"], document["version"]) == ("accuracy", 1)
    [run] = document["runs"]
    assert run["machine"]
    assert run["versions"]["torch"] == torch.__version__
    assert set(run["identity"]) == {"model", "items", "dtype", "max_new_tokens"}
    assert (document["model"], document["items"], document["split"]) == ("ptprune-tiny", 6, "dev")
    rows = {r["method"]: r for r in document["results"]}
    assert list(rows) == ["none", "thumbnail", "ptp", "random", "downsample"]
    assert [r["keep_ratio"] for r in rows.values()] == [1.0, None, 0.25, 0.25, 0.25]
    for r in rows.values():
        assert {*KEYS, "vs_ptp", "right", "run"} <= set(r)
        assert r["low"] <= r["accuracy"] <= r["high"]
        assert len(r["right"]) == 6
        assert r["accuracy"] == pytest.approx(100 * r["right"].count("1") / 6, abs=0.01)
        assert r["retention"] == pytest.approx(100 * r["accuracy"] / rows["none"]["accuracy"], abs=0.02)
    assert [r["vs_ptp"] is None for r in rows.values()] == [True, True, True, False, False]
    assert rows["random"]["vs_ptp"]["difference"] == pytest.approx(
        rows["random"]["accuracy"] - rows["ptp"]["accuracy"], abs=0.02
    )
    known = {setting.name for setting in fields(PyramidTokenPruning)} - {"keep_ratio", "keep_tokens"}
    known -= {setting.name for setting in fields(EncoderSettings)}  # named only where they differ from their defaults
    assert set(rows["ptp"]["settings"]) == known
    assert rows["thumbnail"]["kept_tokens"] == 16
    assert rows["ptp"]["kept_tokens"] == pytest.approx(rows["none"]["kept_tokens"] / 4, abs=0.5)
    assert rows["downsample"]["kept_tokens"] <= rows["ptp"]["kept_tokens"]
    assert rows["none"]["accuracy"] > 80  # the model knows these scenes

    first = bench(*QUICK, "--split", "dev", "--questions", 3, "--json").silent.document
    assert [r["right"] for r in first["results"]] == [r["right"][:3] for r in document["results"]]


def test_a_folder_of_items(bench: Command, folder: Path, tmp_path: Path) -> None:
    document = bench(*QUICK, "--items", folder, "--json").silent.document
    assert (document["items"], document["split"]) == (4, None)
    none = document["results"][0]
    assert none["right"] == "0100"
    assert none["by_kind"] == {"exists": 50.0, "colour": 0.0}
    limited = bench(*QUICK, "--items", folder, "--limit", 2, "--json", "--batch", 1).silent.document
    assert limited["results"][0]["right"] == "01"
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    again = bench(*QUICK, "--items", moved, "--json").silent.document
    assert again == document  # where the folder lies does not matter


@scenes
def test_what_is_encoded(bench: Command, subject: examinee.Examinee, tmp_path: Path) -> None:
    """Fewer tiles hold as many kept tokens, and are counted as a share of the whole picture."""
    file = tmp_path / "encodings.json"
    told = bench("--encodings", "--limit", 6, "--ratios", ".25", "--split", "dev", "--out", file)
    assert told.code == 0
    assert "encoded: tiles, tokens" in told.out
    rows = {name: row for row in json.loads(file.read_text())["results"] for name in row["variants"]}
    asked = scene_items("dev", 6)
    view = Views(subject).fewer(rows["salient tiles"]["encoded_tiles"])
    full, shown = sum(subject.tokens(i.size) for i in asked), sum(subject.tokens(i.size, view(i.size)) for i in asked)
    fewer, whole = rows["fewer tiles"], rows["ptp"]
    assert fewer["method"] == "fewer-tiles"
    assert fewer["encoded_tiles"] == fewer["encoded_tokens"] == round(shown / full, 4) < 1
    assert fewer["kept_tokens"] == pytest.approx(whole["kept_tokens"], abs=1)
    assert "encoded_tiles" not in whole
    assert rows["random tiles"]["encoded_tiles"] == rows["salient tiles"]["encoded_tiles"] < 1
    assert rows["patches"]["encoded_tokens"] < 1 == rows["patches"].get("encoded_tiles", 1)


@scenes
def test_the_table_and_the_plot(bench: Command, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    shares = "0.05,.5,.25,.1,.75"  # wider than 80 columns
    result = bench("--methods", "ptp", "--ratios", shares, "--limit", 3, "--split", "dev", "--plot", path)
    assert result.code == 0, result.err
    assert "…" not in result.out
    assert result.out.count("[") == 1 + 1 + 3 * 5 + 2 * 5
    lines = result.out.splitlines()
    assert lines[0] == "ptprune-tiny, 3 questions of the dev split"
    assert lines[2].startswith("unpruned: ")
    head = next(line for line in lines if line.startswith("right answers"))
    assert head.index("50% kept") < head.index("5% kept", head.index("50% kept") + 8)
    assert [line.split()[0] for line in lines[lines.index(head) + 1 :][:3]] == ["ptp", "random", "downsample"]
    assert any(line.startswith("difference from ptp") for line in lines)
    with Image.open(path) as image:
        assert min(image.size) > 300


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "ptp,best"], "'best' is unknown"),
        (["--methods", ""], "'nothing' is unknown"),
        (["--ratios", ".5,1.5"], "1.5 is out of range"),
        (["--ratios", "0"], "out of range"),
        (["--ratios", "nan"], "out of range"),
        (["--ratios", "half"], "'half' is no number"),
        (["--ratios", ".5,,.1"], "'nothing' is no number"),
        (["--split", "train"], "--split train"),
        (["--split", "test", "--ablate"], "development split"),
        (["--methods", "ptp", "--ablate"], "--methods"),
        (["--methods", "ptp", "--encodings"], "--methods"),
        (["--encodings", "--ablate"], "--encodings: not with --ablate"),
        (["--encodings", "--layer", "2"], "--layer 2: not with --encodings"),
        (["--set", "alpha"], "NAME=VALUE"),
        (["--set", "alpha=2"], "--set alpha must be between 0 and 1, got 2"),
        (["--set", "region=none"], "--set region must be"),
        (["--set", "colour=red"], "--set colour: PyramidTokenPruning has no setting"),
        (["--set", "keep_ratio=.5"], "--ratios"),
        (["--limit", "0"], "--limit"),
        (["--questions", "0"], "--questions"),
        (["--batch", "0"], "--batch"),
        (["--out", "/nowhere/results.json"], "--out /nowhere"),
        (["--plot", "/nowhere/plot.png"], "--plot /nowhere"),
        (["--plot", "plot.txt"], ".png"),
        (["--items", "/nowhere"], "no such folder"),
        (["--items", ".", "--split", "dev"], "--split"),
        (["--items", ".", "--questions", "5"], "--questions"),
        (["--model", "/nowhere"], "no such directory"),
        (["--set", "layer=6"], "6 language model layers"),
        (["--layer", "6"], "6 language model layers"),
        (["--layer", "2", "--methods", "visionzip"], "--layer 2: visionzip cannot drop there"),
        (["--layer", "2", "--ablate"], "--layer 2: not with --ablate"),
        (["--layer", "2", "--set", "layer=1"], "--layer 2: not with --set layer"),
        (["--layer", "-1"], "--layer"),
    ],
    ids=" ".join,
)
def test_bad_options(
    bench: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(examinee.Examinee, "answers", None)  # refused before anything is computed
    if "--out" in arguments or "layer=6" in arguments or "6" in arguments:
        arguments = [*arguments, "--items", str(folder)]
    if "--limit" not in arguments:
        arguments = [*arguments, "--limit", "1"]  # soon over where it is not refused
    refused(bench(*arguments), says)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"picture": "1.png"', "items.jsonl line 3: "),
        ("[]", "line 3: "),
        ('{"picture": "1.png", "question": "a?"}', "line 3: answer"),
        ('{"picture": "1.png", "question": "a?", "answer": ""}', "line 3: answer"),
        ('{"picture": "1.png", "question": "a?", "answer": 5}', "line 3: answer"),
        ('{"picture": "1.png", "question": 1, "answer": "5"}', "line 3: question"),
        ('{"picture": "1.png", "question": "a?", "answer": "5", "kind": 1}', "line 3: kind"),
        ('{"picture": "9.png", "question": "a?", "answer": "5"}', "9.png: no such file"),
        ('{"picture": "items.jsonl", "question": "a?", "answer": "5"}', "line 3: "),
        (
            '{"picture": "1.png", "question": "a <IMG_CONTEXT>?", "answer": "5"}',
            "--items: in a question, '<IMG_CONTEXT>'",
        ),
    ],
)
def test_broken_lines(bench: Command, folder: Path, tmp_path: Path, line: str, says: str) -> None:
    shutil.copy(folder / "1.png", tmp_path)
    good = json.dumps({"picture": "1.png", "question": "is there a red star?", "answer": "no"})
    (tmp_path / "items.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    refused(bench(*QUICK, "--items", tmp_path), says)


def test_folders_without_items(bench: Command, tmp_path: Path) -> None:
    refused(bench("--items", tmp_path), "no items.jsonl there")
    (tmp_path / "items.jsonl").write_text("\n \n")
    refused(bench("--items", tmp_path), "no items")
    (tmp_path / "items.jsonl").write_bytes(b"\xff\xff")
    refused(bench("--items", tmp_path), "cannot be read")


def test_a_file_of_other_results(bench: Command, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    quick = (*QUICK, "--items", folder, "--out", path)
    for text in ("", "[]", '{"results": []}', '{"kind": "published", "version": 1, "tables": []}'):
        path.write_text(text)
        refused(bench(*quick), str(path))
        assert path.read_text() == text
    path.unlink()
    assert bench(*quick, "--limit", 2).code == 0
    before = path.read_bytes()
    refused(bench(*quick, "--limit", 3), "holds results of other items")
    refused(bench(*quick, "--limit", 2, "--dtype", "bfloat16"), "dtype auto, not bfloat16")
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    with (other / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x01")
    refused(bench(*quick, "--limit", 2, "--model", other), "another model")
    assert path.read_bytes() == before


def test_what_to_install(monkeypatch: pytest.MonkeyPatch, bench: Command, tmp_path: Path) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    refused(bench("--plot", tmp_path / "a.png"), "pip install 'ptprune[scenes]'")
