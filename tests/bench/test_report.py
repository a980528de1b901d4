"""``ptprune bench report``: that the page says what its files say, in numbers, in marks and in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ptprune.bench.report.documents import read
from ptprune.bench.report.figures import Pictures

from ptprune.bench import accuracy, plots
from ptprune.bench.report.page import compose
from tests.bench import test_accuracy, test_speed
from tests.command import Command, command, refused

if find_spec("matplotlib") is None:
    pytest.skip("needs the extra: scenes", allow_module_level=True)

bench, folder, run = test_accuracy.bench, test_accuracy.folder, test_speed.run
PUBLISHED = Path(__file__).parents[2] / "benchmarks/published.json"
ITEMS = 60
GOOD, FAIR, POOR = (48, 36, 12)  # right answers of 60: far enough apart for any interval


def measured(method: str, ratio: float | None, right: int, kept: float = 5.0, **given: Any) -> dict[str, Any]:
    """A row as ``bench accuracy`` measures it; the first ``right`` items are right."""
    digits = "1" * right + "0" * (ITEMS - right)
    return {**accuracy.Arm(method, ratio, given).row, "kept_tokens": kept, "right": digits}


NONE = measured("none", 1.0, 54, 10.0)
THUMBNAIL = measured("thumbnail", None, 6)


def of_accuracy(*rows: dict[str, Any], split: str | None = "test", model: str = "ptprune-tiny") -> dict[str, Any]:
    """A document, finished by the real function."""
    reference = accuracy.Arm("ptp", None).settings
    return {
        "model": model,
        "items": ITEMS,
        "split": split,
        "identity": {"model": "a" * 64, "items": "b" * 64, "dtype": "auto", "max_new_tokens": 2},
        "results": accuracy.finish(rows, ["digits", "a|b"] * (ITEMS // 2), reference),
    }


def of_speed(
    layer: int = 0, kept: int = 6, peak: int | None = 900, layers: int = 24, **ratios: float
) -> dict[str, Any]:
    """A document of one method that keeps ``kept`` of 10 tokens."""

    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value / 2, "max": value * 2}

    def row(arm: str, method: str | None, tokens: int, size: int | None, seconds: float) -> dict[str, Any]:
        times = {name: spread(seconds) for name in ("vision_s", "select_s", "prefill_s", "decode_s_per_token")}
        return {
            "arm": arm,
            "method": method,
            "keep_ratio": 0.5 if method else None,
            "layer": layer if method else None,
            "tokens": tokens,
            **times,
            "ttft_s": spread(3 * seconds),
            "peak_bytes": size,
            "kv_bytes": 1000 * tokens,
            "macs": {"first_token": 10**9},
        }

    names = ("prefill_vs_unpruned", "prefill_vs_ideal", "select_share", "ttft_vs_unpruned", "decode_vs_unpruned")
    return {
        "shape": "internvl3-1b",
        "device": "cpu",
        "machine": "Abacus 3000",
        "dtype": "float32",
        "attention": "sdpa",
        "layers": layers,
        "layers_of_shape": 24,
        "vision_layers": layers,
        "vision_layers_of_shape": 24,
        "batch": 1,
        "rounds": 3,
        "new_tokens": 8,
        "threads": 2,
        "versions": {"torch": "2.13.0"},
        "tiles": 4,
        "tokens": {"visual": 8, "other": 2, "before": 10, "after": {"ptp": 6}},
        "rows": [
            row("unpruned", None, 10, 1000, 2.0),
            row("pruned", "ptp", kept, peak, 1.0),
            row("ideal", None, 6, 500, 0.5),
        ],
        "ratios": {
            "ptp": {
                **{name: spread(ratios.get(name, 0.5)) for name in names},
                "kv": kept / 10,
                "peak": None if peak is None else peak / 1000,
            }
        },
        "samples": [],
    }


def of_papers(**changes: Any) -> dict[str, Any]:
    row = {"method": "FastV", "values": [91.5, None], "source": "A paper", **changes}
    entry = {"title": "Theirs", "model": "LLaVA", "unit": "%", "columns": ["640", "160"], "rows": [row]}
    return {"published": [entry]}


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., str]:
    """The text that documents give."""

    def write(*documents: dict[str, Any]) -> str:
        paths = [tmp_path / f"{number}.json" for number in range(len(documents))]
        for path, document in zip(paths, documents, strict=True):
            path.write_text(json.dumps(document))
        return compose(read(paths), Pictures("results"))

    return write


def cells(text: str, heading: str, table: int = 0) -> dict[str, list[str]]:
    """A table under a heading: first column -> the others; the header under ""."""
    part = text[text.index(f"{heading}\n") + len(heading) :]
    tables = re.findall(r"(?:^\|.*\|\n)+", re.split(r"\n#+ ", part)[0], flags=re.MULTILINE)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in tables[table].splitlines()]
    return {"": rows[0][1:], **{row[0].strip("*"): row[1:] for row in rows[2:]}}


OWN, KINDS = "#### Each method with its own default settings", "#### By kind of question, right answers in %"


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_every_row_stands_in_the_table(page: Callable[..., str]) -> None:
    document = of_accuracy(
        NONE, THUMBNAIL, measured("random", 0.5, POOR), measured("ptp", 0.5, FAIR), measured("fastv", 0.25, FAIR)
    )
    text = page(document)
    table = cells(text, OWN)
    assert list(table) == ["", "ptp", "fastv", "random"]
    assert table[""] == ["layer", "50% kept", "25% kept"]
    of = {row["method"]: row for row in document["results"]}
    again = {**of["ptp"], "accuracy": 0.0}
    assert page({**document, "results": [*document["results"], again]}) == text

    def score(method: str) -> str:
        return "{accuracy:.1f} [{low:.1f}, {high:.1f}]".format(**of[method])

    assert table["ptp"] == ["2", score("ptp"), "not measured"]
    assert table["fastv"] == ["2", "not measured", score("fastv")]
    assert table["random"] == ["2", f"{score('random')} ▼", "not measured"]
    assert f"- unpruned: {score('none')} % right, 10 visual tokens a picture" in text
    assert f"- thumbnail alone: {score('thumbnail')} % right, 5 visual tokens" in text
    assert "### ptprune-tiny, 60 questions, test split\n" in text
    assert "ptp retains 66.7% at 50%." in text
    assert "Shares of visual tokens that are not those asked for: fastv 50.0% for 25%." in text


def test_who_is_better_in_words(page: Callable[..., str]) -> None:
    ptp = [measured("ptp", 0.5, FAIR), measured("ptp", 0.25, FAIR)]
    wins = [measured("fastv", 0.5, GOOD), measured("fastv", 0.25, POOR)]
    draws = [measured("dart", 0.5, FAIR + 1), measured("dart", 0.25, FAIR - 1)]  # intervals that touch 0
    loses = [measured("hired", ratio, POOR) for ratio in (0.5, 0.25)]
    text = page(of_accuracy(NONE, *ptp, *wins, *draws, *loses))
    assert "- ▲ Better than ptp: fastv at 50%.\n" in text
    assert "- ▼ Worse than ptp: fastv at 25%; hired at every ratio.\n" in text
    assert "- 6 comparisons, each with a 95% interval: about 0.3 of them" in text
    table = cells(text, OWN)
    marks = {name: "".join(cell[-1] for cell in row[1:]) for name, row in table.items() if name}
    assert marks == {"ptp": "]]", "fastv": "▲▼", "dart": "]]", "hired": "▼▼"}

    text = page(of_accuracy(NONE, *ptp, *draws))
    assert "- ▲ Better than ptp: none.\n" in text
    assert "- ▼ Worse than ptp: none.\n" in text
    text = page(of_accuracy(NONE, *wins))
    assert "nothing here to compare ptp with" in text
    assert "▲ Better" not in text


def test_what_the_file_says_of_another_ptp_is_not_repeated(page: Callable[..., str]) -> None:
    """A file keeps what an earlier run compared with; the page compares within its own tables."""
    document = of_accuracy(NONE, measured("ptp", 0.5, FAIR), measured("fastv", 0.5, FAIR))
    document["results"][2]["vs_ptp"] = {"difference": 50.0, "low": 40.0, "high": 60.0}
    assert "- ▲ Better than ptp: none.\n" in page(document)


def test_all_methods_before_one_layer(page: Callable[..., str]) -> None:
    rows = [
        NONE,
        measured("ptp", 0.5, GOOD),
        measured("ptp", 0.5, FAIR, layer=0),
        measured("hired", 0.5, GOOD),
        measured("hired", 0.5, POOR, layer=2),
        measured("hired", 0.5, GOOD, alpha=0.25, layer=2),
        measured("fastv", 0.5, GOOD),
        measured("fastv", 0.5, POOR, layer=0),
        measured("pyramiddrop", 0.5, FAIR),
        measured("downsample", 0.5, POOR),
    ]
    text = page(of_accuracy(*rows))
    assert {name: row[0] for name, row in cells(text, OWN).items()} == {
        "": "layer", "ptp": "2", "fastv": "2", "pyramiddrop": "2 on", "hired": "0", "downsample": "-",
    }  # fmt: skip
    own, at_0, at_2 = (part.split("\n#### ")[0] for part in re.split(r"#### (?:Each|All) methods? ", text)[1:])
    assert list(cells(text, "#### All methods before layer 0")) == ["", "ptp", "fastv", "hired"]
    assert list(cells(text, "#### All methods before layer 2")) == ["", "ptp", "fastv", "pyramiddrop", "hired"]
    assert "▲ Better than ptp: none.\n" in own
    assert "▲ Better than ptp: hired at 50%.\n" in at_0
    assert "▼ Worse than ptp: fastv at 50%.\n" in at_0
    assert "▲ Better than ptp: none.\n" in at_2
    assert "▼ Worse than ptp: pyramiddrop at 50%; hired at 50%.\n" in at_2
    staged = "since it drops in stages: pyramiddrop."
    assert [staged in part for part in (own, at_0, at_2)] == [True, False, True]
    assert "In the file, but in no table here: hired (layer=2, alpha=0.25)." in text
    assert "before layer" not in page(of_accuracy(NONE, measured("ptp", 0.5, GOOD), measured("hired", 0.5, GOOD)))


def test_kinds_of_questions(page: Callable[..., str]) -> None:
    document = of_accuracy(NONE, measured("ptp", 0.5, 31), measured("ptp", 0.25, FAIR), measured("random", 0.5, 1))
    table = cells(page(document), KINDS)
    assert table[""] == ["unpruned", "ptp, 50% kept", "ptp, 25% kept"]
    assert table["digits"] == ["90.0", f"{100 * 16 / 30:.1f}", "60.0"]
    assert table[r"a\|b"] == ["90.0", f"{100 * 15 / 30:.1f}", "60.0"]
    for row in document["results"]:
        row["by_kind"] = {}
    assert KINDS not in page(document)


def test_a_document_without_rows(page: Callable[..., str]) -> None:
    text = page(of_accuracy())
    assert "No method was measured with its default settings." in text
    assert "- unpruned: not measured\n" in text


# --- ablation ---------------------------------------------------------------------------------------------------------


def of_ablation(base: dict[str, Any], changes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Variants by name with right answers at 50% and 25%; all others are as good as ptp."""
    arms = accuracy.plan_ablation([0.5, 0.25], base)
    rows = {}
    for arm in arms:
        right = changes.get(arm.name, (FAIR, FAIR))[arm.keep_ratio == 0.25]
        rows.setdefault(arm.key, measured(arm.method, arm.keep_ratio, right, **arm.given))
    return of_accuracy(*rows.values(), split="dev")


@pytest.mark.parametrize("base", [{}, {"temperature": 2.0, "alpha": 0.3}], ids=["defaults", "given"])
def test_variants_against_the_ptp_that_they_start_from(page: Callable[..., str], base: dict[str, Any]) -> None:
    text = page(of_ablation(base, {"layer 3": (GOOD, FAIR), "without region level": (POOR, POOR)}))
    section = text[text.index("## Ablation") : text.index("## Speed")]
    assert "### ptprune-tiny, 60 questions, development split\n" in section
    assert "- ▲ Better than ptp: layer 3 at 50%.\n" in section
    assert "- ▼ Worse than ptp: without region level at every ratio.\n" in section
    table = cells(section, "### ptprune-tiny, 60 questions, development split")
    assert table["layer 3"][0].startswith("+20.0 [")
    assert table["layer 3"] == [table["layer 3"][0], "+0.0 [+0.0, +0.0]"]
    assert table["layer 3"][0].endswith("▲")
    assert table["without token level, alpha 1"] == ["+0.0 [+0.0, +0.0]"] * 2
    assert ("temperature 2" in table) == (not base)
    assert ("temperature 1" in table) == bool(base)
    has = "alpha=0.3, temperature=2.0" if base else "its default settings"
    assert f"ptp here has {has} (layer 2, " in section
    assert "## Accuracy\n\nNot measured." in text
    document = of_ablation(base, {"layer 3": (GOOD, FAIR), "without region level": (POOR, POOR)})
    assert page({**document, "results": document["results"][::-1]}) == text, "the ptp to compare with is not the first"


def test_an_ablation_without_differences(page: Callable[..., str]) -> None:
    text = page(of_ablation({}, {}))
    assert "- ▲ Better than ptp: none.\n- ▼ Worse than ptp: none.\n" in text


def test_one_ptp_more_in_a_comparison_is_no_ablation(page: Callable[..., str]) -> None:
    layers = of_accuracy(NONE, measured("ptp", 0.5, GOOD), measured("ptp", 0.5, FAIR, layer=0))
    assert "## Ablation\n\nNot measured." in page(layers)
    both = of_accuracy(
        NONE, measured("ptp", 0.5, GOOD), measured("ptp", 0.5, FAIR, region="uniform"), measured("dart", 0.5, POOR)
    )
    text = page(both)
    assert "▼ Worse than ptp: dart at 50%." in text
    assert "▼ Worse than ptp: without region level at 50%." in text
    assert "in no table here" not in text


# --- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "reached", "failed"),
    [
        ("select share", {"select_share": 0.01}, {"select_share": 0.0101}),
        ("prefill to ideal", {"prefill_vs_ideal": 1.03}, {"prefill_vs_ideal": 1.0301}),
        ("KV cache", {"kept": 6}, {"kept": 7}),
        ("peak", {"peak": 1000}, {"peak": 1001}),
    ],
)
def test_targets(page: Callable[..., str], target: str, reached: Any, failed: Any) -> None:
    fine = {"select_share": 0.001, "prefill_vs_ideal": 1.0}
    for change, verdict in ((reached, "met"), (failed, "**missed**")):
        table = cells(page(of_speed(**{**fine, **change})), "### internvl3-1b on cpu", 2)
        verdicts = {name: row[-1] for name, row in table.items() if name}
        assert verdicts.pop(target) == verdict
        assert set(verdicts.values()) == {"met"}


def test_what_has_no_verdict(page: Callable[..., str]) -> None:
    table = cells(page(of_speed(layer=2, peak=None)), "### internvl3-1b on cpu", 2)
    assert table["prefill to ideal"][-1] == "no target: layers before 2 run on all tokens"
    assert table["peak"][1:] == ["not measured", "not measured"]


def test_times_of_the_arms(page: Callable[..., str]) -> None:
    text = page(of_speed(prefill_vs_unpruned=0.25))
    heading = "### internvl3-1b on cpu"
    arms = cells(text, heading)
    assert arms["unpruned"] == ["-", "-", "10", *["2.00 s"] * 3, "6.00 s", "2.00 s", "1e+03 B", "9.77 KiB", "1 G"]
    assert arms["ptp"][:4] == ["50%", "0", "6", "1.00 s"]
    ratios = cells(text, heading, 1)
    assert ratios["prefill to unpruned"] == ["0.2500", "0.1250", "0.5000"]
    assert ratios["KV cache to unpruned"][0] == "0.6000"
    for said in ("Abacus 3000", "threads 2", "float32", "torch 2.13.0", "24 of 24 decoder layers", "4 tiles, 8 visual"):
        assert said in text
    assert "no numbers to quote" not in text
    assert "Only 6 of 24 decoder layers" in page(of_speed(layers=6))
    assert "no numbers to quote" in page(of_speed(layers=6))
    short_tower = page(of_speed() | {"vision_layers": 4})
    assert "Only 24 of 24 decoder layers and 4 of 24 of the vision tower: the vision tower is cut" in short_tower
    assert "no numbers to quote" not in short_tower


# --- what was not measured, and what others did -----------------------------------------------------------------------


def not_measured(text: str) -> str:
    return text[text.index("## Not measured") : text.index("## What the papers report")]


def test_what_was_not_measured_is_said(page: Callable[..., str]) -> None:
    missing = not_measured(page())
    for what in (
        "models other than ptprune-tiny",
        "the test split",
        "speed on a CPU",
        "speed on a GPU",
        "of ptp, random",
    ):
        assert f"{what}" in missing
    text = page(of_accuracy(measured("ptp", 0.5, 1), split="dev"), of_speed(layers=6))
    missing = not_measured(text)
    assert "speed on a GPU: not measured" in missing
    assert "speed on a CPU" not in missing
    assert "test split: not measured" in missing
    assert "all of its layers" in missing
    assert "accuracy of random, " in missing
    checkpoint = dict.fromkeys(("layers", "layers_of_shape", "vision_layers", "vision_layers_of_shape"))
    everything = [measured(method, 0.5, 1) for method in accuracy.METHODS]
    text = page(
        of_accuracy(*everything, model="owner/name"),
        of_speed(),
        of_speed(layers=6),
        {**of_speed(), "device": "cuda:1", **checkpoint},
    )
    assert "Nothing is missing." in not_measured(text)


def test_numbers_of_papers_stand_apart(page: Callable[..., str]) -> None:
    text = page(of_accuracy(NONE, measured("fastv", 0.5, FAIR)), of_papers())
    ours, theirs = text.split("## What the papers report")
    assert cells(theirs, "### Theirs") == {"": ["640", "160", "source"], "FastV": ["91.5", "-", "A paper"]}
    assert "Model: LLaVA. Unit: %." in theirs
    assert "91.5" not in ours
    assert "fastv" not in theirs


def test_the_collected_numbers_all_have_a_source(page: Callable[..., str]) -> None:
    document = json.loads(PUBLISHED.read_text())
    text = page(document)
    for entry in document["published"]:
        for row in entry["rows"]:
            shown = cells(text, f"### {entry['title']}")[row["method"]]
            assert shown == [*("-" if v is None else f"{v:g}" for v in row["values"]), row["source"]]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Command:
    """``report(FILE, ..., "--out", PAGE)``."""
    return command(capsys, "bench", "report")


def test_from_what_the_benchmarks_write(
    bench: Command, run: Any, folder: Path, report: Command, tmp_path: Path
) -> None:
    answers, times, out = tmp_path / "answers.json", tmp_path / "times.json", tmp_path / "my results.md"
    assert bench(*test_accuracy.QUICK, "--items", folder, "--limit", 2, "--out", answers).code == 0
    assert run(*test_speed.SMALL, "--rounds", 1, "--methods", "ptp,random", "--layers", 2, "--out", times).code == 0
    arguments = (answers, times, PUBLISHED, "--out", out)
    result = report(*arguments)
    assert (result.code, result.err) == (0, "")
    written = [out, *(tmp_path / "my results" / name for name in ("accuracy-1.png", "speed-1.png"))]
    assert result.out.split("\n")[:-1] == [str(path) for path in written]
    text = out.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert " " not in link
        assert (tmp_path / link.replace("%20", " ")).read_bytes()[1:4] == b"PNG"
    for row in json.loads(answers.read_text())["results"]:
        assert f"{row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in text
    assert "2 questions, a folder of items" in text
    assert str(tmp_path) not in text
    before = [path.read_bytes() for path in written]
    assert report(*arguments).code == 0
    assert [path.read_bytes() for path in written] == before


def test_where_a_model_lies_is_not_said(page: Callable[..., str]) -> None:
    def heading(model: str) -> str:
        return re.findall("^### (.*), 60 questions", page(of_accuracy(NONE, model=model)), flags=re.MULTILINE)[0]

    for lies in ("/home/me/secret/my-model", "../secret/my-model/", "~/secret/my-model", "C:\\secret\\my-model"):
        assert heading(lies) == "my-model"
    assert heading("OpenGVLab/InternVL3-2B-hf") == "OpenGVLab/InternVL3-2B-hf"
    assert "### my-model on cpu" in page({**of_speed(), "shape": "/home/me/my-model"})


def changed(document: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """A copy with one value replaced; ``...`` takes it out."""
    copy: Any = json.loads(json.dumps(document))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return copy


ONE = of_accuracy(NONE, measured("ptp", 0.5, 30))


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"shape": "internvl3-1b", "rounds": []}, "not a document of this command"),
        ([], "not a document of this command"),
        (changed(ONE, "results", 1, "accuracy", to=...), "results[1].accuracy must be there"),
        (changed(ONE, "results", 1, "low", to="75"), "results[1].low must be a number"),
        (changed(ONE, "results", 1, "low", to=float("nan")), "results[1].low must be a number"),
        (changed(ONE, "results", 1, "low", to=True), "results[1].low must be a number"),
        (changed(ONE, "results", 1, "right", to="01"), "results[1].right must be 60 digits 0 or 1"),
        (changed(ONE, "results", 1, "method", to="guess"), "not 'guess'"),
        (changed(ONE, "results", 1, "keep_ratio", to=None), "results[1].keep_ratio must be a number"),
        (changed(ONE, "results", 1, "settings", "layer", to="2"), "results[1].settings.layer must be a number"),
        (changed(ONE, "results", 1, "by_kind", "digits", to=None), "results[1].by_kind.digits must be a number"),
        (changed(ONE, "results", 0, "kept_tokens", to=0), "results[0].kept_tokens must be over 0"),
        (changed(ONE, "results", to={}), "results must be a list"),
        (changed(ONE, "items", to=0), "items must be at least 1"),
        (changed(of_speed(), "rows", 0, "arm", to="pruned"), "rows must be a list with one unpruned arm"),
        (changed(of_speed(), "rows", 2, "ttft_s", "median", to=...), "rows[2].ttft_s.median must be there"),
        (changed(of_speed(), "rows", 1, "macs", to={}), "rows[1].macs.first_token must be there"),
        (changed(of_speed(), "ratios", to={}), "ratios must be about ptp"),
        (changed(of_speed(), "ratios", "ptp", "kv", to=None), "ratios.ptp.kv must be a number"),
        (changed(of_speed(), "tokens", "after", to={}), "tokens.after.ptp must be there"),
        (of_papers(source=" "), "published[0].rows[0].source must be where the numbers are from"),
        (of_papers(values=[1]), "published[0].rows[0].values must be 2, one a column"),
        ("{", "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_used(report: Command, tmp_path: Path, document: Any, says: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    refused(report(path, "--out", tmp_path / "page.md"), f"{path}: ", says)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_there_or_twice(report: Command, tmp_path: Path) -> None:
    one, copy, out = tmp_path / "one.json", tmp_path / "copy.json", tmp_path / "page.md"
    one.write_text(json.dumps(ONE))
    copy.write_text(json.dumps(ONE, indent=3))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    refused(report(one, one, "--out", out), f"{one}: the same as {one}")
    refused(report(one, copy, "--out", out), f"{copy}: the same as {one}")
    refused(report(tmp_path / "no.json", "--out", out), "no.json: no such file")
    refused(report(tmp_path, "--out", out), "cannot be read")
    refused(report(tmp_path / "binary.json", "--out", out), "binary.json: cannot be read")
    refused(report("--out", out), "FILE")
    assert not out.exists()


def test_a_page_that_cannot_be_written(report: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, out = tmp_path / "one.json", tmp_path / "page.md"
    one.write_text(json.dumps(ONE))
    refused(report(one), "--out")
    refused(report(one, "--out", tmp_path / "page.html"), "ends in .md")
    refused(report(one, "--out", tmp_path / "nowhere" / "page.md"), "cannot be written there")
    (tmp_path / "page").write_text("in the way")
    refused(report(one, "--out", out), f"{tmp_path / 'page'}: cannot hold the plots")
    (tmp_path / "page").unlink()
    (tmp_path / "page" / "accuracy-1.png").mkdir(parents=True)
    refused(report(one, "--out", out), "accuracy-1.png: cannot be written")
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    refused(report(one, "--out", out), "ptprune bench report needs matplotlib", "pip install 'ptprune[scenes]'")
    assert not out.exists()
    papers = tmp_path / "papers.json"
    papers.write_text(json.dumps(of_papers()))
    assert report(papers, "--out", out).code == 0  # nothing to draw
