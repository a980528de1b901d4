"""``ptprune bench report``: that the page says what its files say: which numbers, where, in which order, marked how."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ptprune.bench import accuracy, plots
from ptprune.bench.candidates import Candidate, ablate
from ptprune.bench.report.accuracy import BETTER, WORSE
from ptprune.bench.report.page import compose
from ptprune.bench.report.parts import Figures
from ptprune.methods import METHODS
from ptprune.results import rows
from ptprune.results.file import read, save
from tests.bench import test_accuracy, test_speed
from tests.command import Command, command, refused

if find_spec("matplotlib") is None:
    pytest.skip("needs the extra: scenes", allow_module_level=True)

bench, folder, run = test_accuracy.bench, test_accuracy.folder, test_speed.run
PUBLISHED = Path(__file__).parents[2] / "benchmarks/published.json"
ITEMS = 60
GOOD, FAIR, POOR = (48, 36, 12)  # right answers of 60: far enough apart for any interval
RUN = rows.Run(
    machine="Abacus 3000",
    versions={"torch": "2.13.0"},
    identity={"model": "a" * 64, "items": "b" * 64, "dtype": "auto", "max_new_tokens": 2},
)


def measured(method: str, ratio: float | None, right: int, kept: float = 5.0, **given: Any) -> rows.AccuracyRow:
    """A row as ``bench accuracy`` writes it; the first ``right`` items are right."""
    kinds = ["digits", "a|b"] * (ITEMS // 2)
    return accuracy.row_of(Candidate(method, ratio, given), "1" * right + "0" * (ITEMS - right), kept, kinds)


NONE = measured("none", 1.0, 54, 10.0)
THUMBNAIL = measured("thumbnail", None, 6)


def of_accuracy(
    *measured: rows.AccuracyRow, split: str | None = "test", model: str = "ptprune-tiny"
) -> rows.AccuracyResults:
    finished = accuracy.finish(measured, Candidate("ptp", None).settings)
    return rows.AccuracyResults(model=model, items=ITEMS, split=split, runs=[RUN], results=finished)


def of_ablation(base: dict[str, Any], changes: dict[str, tuple[int, int]]) -> rows.AccuracyResults:
    """Variants by name with right answers at 50% and 25%; all others are as good as ptp."""
    found: dict[str, rows.AccuracyRow] = {}
    for one in ablate([0.5, 0.25], base):
        right = changes.get(one.name, (FAIR, FAIR))[one.keep_ratio == 0.25]
        row = found.setdefault(one.key, measured(one.method, one.keep_ratio, right, **one.given))
        row.variants += [one.variant] if one.variant else []
    return of_accuracy(*found.values(), split="dev")


def of_speed(layer: int = 0, kept: int = 6, peak: int | None = 900, **changes: Any) -> rows.SpeedResults:
    """One method that keeps ``kept`` of 10 tokens; ratios are medians, by name."""

    def spread(value: float) -> rows.Spread:
        return rows.Spread(median=value, min=value / 2, max=value * 2)

    def row(arm: Any, method: str | None, tokens: int, peak: int | None, seconds: float) -> rows.SpeedRow:
        times = {name: spread(seconds) for name in ("vision_s", "select_s", "prefill_s", "decode_s_per_token")}
        pruned = {"keep_ratio": 0.5, "layer": layer} if method else {"keep_ratio": None, "layer": None}
        sizes = {"peak_bytes": peak, "kv_bytes": 1000 * tokens, "macs": {"first_token": 10**9}}
        return rows.SpeedRow(
            arm=arm, method=method, tokens=tokens, ttft_s=spread(3 * seconds), **pruned, **times, **sizes
        )

    names = ("prefill_vs_unpruned", "prefill_vs_ideal", "select_share", "ttft_vs_unpruned", "decode_vs_unpruned")
    ratios = rows.SpeedRatios(
        **{name: spread(changes.pop(name, 0.5)) for name in names},
        kv=kept / 10,
        peak=None if peak is None else peak / 1000,
    )
    about: dict[str, Any] = {"shape": "internvl3-1b", "device": "cpu", "dtype": "float32", "attention": "sdpa"}
    about |= {"layers": 24, "layers_of_shape": 24, "vision_layers": 24, "vision_layers_of_shape": 24}
    about |= {"batch": 1, "rounds": 3, "new_tokens": 8, "threads": 2, "tiles": 4, "samples": []}
    return rows.SpeedResults(
        runs=[RUN],
        tokens=rows.Tokens(visual=8, other=2, before=10, after={"ptp": 6}),
        rows=[
            row("unpruned", None, 10, 1000, 2.0),
            row("pruned", "ptp", kept, peak, 1.0),
            row("ideal", None, 6, 500, 0.5),
        ],
        ratios={"ptp": ratios},
        **{**about, **changes},
    )


PAPER = rows.PublishedTable(
    title="Theirs",
    model="LLaVA",
    unit="%",
    columns=["640", "160"],
    rows=[rows.PublishedRow(method="FastV", values=[91.5, None], source="A paper")],
)


def page(*files: rows.Results) -> str:
    return compose(files, Figures("results"))


def part(text: str, heading: str) -> str:
    """What stands under a heading that contains this, up to the next one of its rank or above."""
    parts = re.split(r"^(#+ .*)\n", text, flags=re.MULTILINE)
    at = next(n for n in range(1, len(parts), 2) if heading in parts[n])
    rank = parts[at].index(" ")
    ends = (n for n in range(at + 2, len(parts), 2) if parts[n].index(" ") <= rank)
    return "\n".join(parts[at + 1 : next(ends, len(parts))])


def cells(text: str, table: int = 0) -> dict[str, list[str]]:
    """A table: first column -> the others; the header under ""."""
    found = re.findall(r"(?:^\|.*\|\n)+", f"{text}\n", flags=re.MULTILINE)
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[table].splitlines()]
    return {"": lines[0][1:], **{line[0].strip("*"): line[1:] for line in lines[2:]}}


def marked(text: str, mark: str) -> str:
    """What the lines of claims say after this mark: "fastv at 50%; hired at every ratio"."""
    [line] = [line for line in text.splitlines() if line.startswith(f"- {mark}")]
    return line.partition(": ")[2].rstrip(".")


OWN, BEFORE, KINDS = "own default settings", "before layer {}", "By kind of question"


def test_every_row_stands_in_the_table() -> None:
    results = of_accuracy(
        NONE, THUMBNAIL, measured("random", 0.5, POOR), measured("ptp", 0.5, FAIR), measured("fastv", 0.25, FAIR)
    )
    text = page(results)
    table = cells(part(text, OWN))
    assert list(table) == ["", "ptp", "fastv", "random"]
    assert table[""][1:] == ["50% kept", "25% kept"]
    score = {row.method: f"{row.accuracy:.1f} [{row.low:.1f}, {row.high:.1f}]" for row in results.results}
    assert table["ptp"] == ["2", score["ptp"], "not measured"]
    assert table["fastv"] == ["2", "not measured", score["fastv"]]
    assert table["random"] == ["2", f"{score['random']} {WORSE}", "not measured"]
    about = part(text, "ptprune-tiny, 60 questions, test split").split("####")[0]
    for told in (score["none"], "10 visual tokens", score["thumbnail"], "5 visual tokens", "a" * 12, "b" * 12):
        assert told in about
    assert "66.7% at 50%" in text  # retained
    assert "fastv 50.0% for 25%" in text  # another share than asked for
    again = next(row for row in results.results if row.method == "ptp").model_copy(update={"accuracy": 0.0})
    twice = results.model_copy(update={"results": [*results.results, again]})
    assert page(twice) == text, "of two rows of the same settings the first counts"


def test_who_is_better_in_words() -> None:
    ptp = [measured("ptp", 0.5, FAIR), measured("ptp", 0.25, FAIR)]
    wins = [measured("fastv", 0.5, GOOD), measured("fastv", 0.25, POOR)]
    draws = [measured("dart", 0.5, FAIR + 1), measured("dart", 0.25, FAIR - 1)]  # intervals that touch 0
    loses = [measured("hired", ratio, POOR) for ratio in (0.5, 0.25)]
    text = page(of_accuracy(NONE, *ptp, *wins, *draws, *loses))
    assert (marked(text, BETTER), marked(text, WORSE)) == ("fastv at 50%", "fastv at 25%; hired at every ratio")
    assert "6 comparisons" in text
    assert "0.3 of them" in text
    marks = {name: "".join(cell[-1] for cell in row[1:]) for name, row in cells(part(text, OWN)).items() if name}
    assert marks == {"ptp": "]]", "fastv": BETTER + WORSE, "dart": "]]", "hired": WORSE + WORSE}
    text = page(of_accuracy(NONE, *ptp, *draws))
    assert marked(text, BETTER) == marked(text, WORSE) == "none"
    assert f"- {BETTER}" not in page(of_accuracy(NONE, *wins)), "there is no ptp to compare with"


def test_what_the_file_says_of_another_ptp_is_not_repeated() -> None:
    """A file keeps what an earlier run compared with; the page compares within its own tables."""
    results = of_accuracy(NONE, measured("ptp", 0.5, FAIR), measured("fastv", 0.5, FAIR))
    results.results[2].vs_ptp = rows.Gain(difference=50.0, low=40.0, high=60.0)
    assert marked(page(results), BETTER) == "none"


def test_all_methods_before_one_layer() -> None:
    text = page(
        of_accuracy(
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
        )
    )
    own, at_0, at_2 = (part(text, heading) for heading in (OWN, BEFORE.format(0), BEFORE.format(2)))
    assert {name: row[0] for name, row in cells(own).items() if name} == {
        "ptp": "2", "fastv": "2", "pyramiddrop": "2 on", "hired": "0", "downsample": "-",
    }  # fmt: skip
    assert list(cells(at_0)) == ["", "ptp", "fastv", "hired"]
    assert list(cells(at_2)) == ["", "ptp", "fastv", "pyramiddrop", "hired"]
    assert [marked(where, BETTER) for where in (own, at_0, at_2)] == ["none", "hired at 50%", "none"]
    assert [marked(where, WORSE) for where in (at_0, at_2)] == ["fastv at 50%", "pyramiddrop at 50%; hired at 50%"]
    assert ["in stages: pyramiddrop" in where for where in (own, at_0, at_2)] == [True, False, True]
    assert "hired (layer=2, alpha=0.25)" in text, "a row in no table is named"
    assert "before layer" not in page(of_accuracy(NONE, measured("ptp", 0.5, GOOD), measured("hired", 0.5, GOOD)))


def test_kinds_of_questions() -> None:
    results = of_accuracy(NONE, measured("ptp", 0.5, 31), measured("ptp", 0.25, FAIR), measured("random", 0.5, 1))
    table = cells(part(page(results), KINDS))
    assert table[""] == ["unpruned", "ptp, 50% kept", "ptp, 25% kept"]
    assert table["digits"] == ["90.0", f"{100 * 16 / 30:.1f}", "60.0"]
    assert table[r"a\|b"] == ["90.0", f"{100 * 15 / 30:.1f}", "60.0"]
    for row in results.results:
        row.by_kind = {}
    assert KINDS not in page(results)


@pytest.mark.parametrize("base", [{}, {"temperature": 2.0, "alpha": 0.3}], ids=["defaults", "given"])
def test_variants_against_the_ptp_that_they_start_from(base: dict[str, Any]) -> None:
    results = of_ablation(base, {"layer 3": (GOOD, FAIR), "without neighbourhood": (POOR, POOR)})
    text = page(results)
    section = part(text, "Ablation")
    assert (marked(section, BETTER), marked(section, WORSE)) == (
        "layer 3 at 50%",
        "without neighbourhood at every ratio",
    )
    table = cells(section)
    assert table["layer 3"][0].startswith("+20.0 [")
    assert table["layer 3"][0].endswith(BETTER)
    assert table["layer 3"][1] == "+0.0 [+0.0, +0.0]"
    assert table["without token level, alpha 1"] == ["+0.0 [+0.0, +0.0]"] * 2
    assert ("temperature 2" in table) == (not base)
    assert ("temperature 1" in table) == bool(base)
    assert ("alpha=0.3, temperature=2.0" in section) == bool(base), "what ptp itself has is said"
    assert "|" not in part(text, "Accuracy"), "an ablation is no comparison of methods"
    backwards = results.model_copy(update={"results": results.results[::-1]})
    assert page(backwards) == text, "the ptp to compare with need not come first"
    assert marked(page(of_ablation({}, {})), WORSE) == "none"


def test_a_comparison_and_an_ablation_in_one_file() -> None:
    """Another layer of ptp is no variant; rows that were measured as a variant are."""
    layers = of_accuracy(NONE, measured("ptp", 0.5, GOOD), measured("ptp", 0.5, FAIR, layer=0))
    assert "|" not in part(page(layers), "Ablation")
    ptp, variant = measured("ptp", 0.5, GOOD), measured("ptp", 0.5, FAIR, instruction="attention")
    ptp.variants, variant.variants = ["ptp"], ["without neighbourhood"]
    text = page(of_accuracy(NONE, ptp, variant, measured("dart", 0.5, POOR)))
    assert marked(part(text, "Accuracy"), WORSE) == "dart at 50%"
    assert marked(part(text, "Ablation"), WORSE) == "without neighbourhood at 50%"
    assert "instruction=attention" not in text


@pytest.mark.parametrize(
    ("target", "reached", "failed"),
    [
        ("select share", {"select_share": 0.01}, {"select_share": 0.0101}),
        ("prefill to ideal", {"prefill_vs_ideal": 1.03}, {"prefill_vs_ideal": 1.0301}),
        ("KV cache", {"kept": 6}, {"kept": 7}),
        ("peak", {"peak": 1000}, {"peak": 1001}),
    ],
)
def test_targets(target: str, reached: Any, failed: Any) -> None:
    for change, verdict in ((reached, "met"), (failed, "missed")):
        text = page(of_speed(**{"select_share": 0.001, "prefill_vs_ideal": 1.0, **change}))
        verdicts = {name: row[-1].strip("*") for name, row in cells(part(text, "on cpu"), 2).items() if name}
        assert verdicts.pop(target) == verdict
        assert set(verdicts.values()) == {"met"}
    table = cells(part(page(of_speed(layer=2, peak=None)), "on cpu"), 2)
    assert table["peak"][1:] == ["not measured", "not measured"]
    assert "no target" in table["prefill to ideal"][-1]


@pytest.mark.parametrize(("ratio", "bound"), [(0.5, 0.6), (0.25, 0.4)])
@pytest.mark.parametrize("enough", [True, False])
def test_targets_of_what_the_encoder_is_spared(ratio: float, bound: float, enough: bool) -> None:
    """Of the arm that spares all it can, and of no other."""
    excess = 0.0 if enough else 0.001
    results = of_speed(ttft_vs_unpruned=bound + excess, peak=round(1000 * (0.7 + excess)))
    results.rows[1] = results.rows[1].model_copy(
        update={"encoder": "both", "label": "ptp both", "keep_ratio": ratio, "encoded_tiles": 3}
    )
    results.ratios = {"ptp both": results.ratios["ptp"]}
    results.tokens.after = {"ptp both": 6}
    results.picture = rows.SpeedPicture(kind="scene", seed=1, background="waves", filled_tiles=2)
    section = part(page(rows.SpeedResults.model_validate(results.model_dump())), "on cpu")
    verdicts = {name: row[-1].strip("*") for name, row in cells(section, 2).items() if name}
    for target in ("first token to unpruned", "peak"):
        assert verdicts[target] == ("met" if enough else "missed")
    assert cells(section)["ptp both"][:4] == [f"{100 * ratio:g}%", "0", "3", "6"]
    assert "2 hold something" in section
    results.rows[1] = results.rows[1].model_copy(update={"encoder": "salient"})
    others = cells(part(page(results), "on cpu"), 2)
    assert "first token to unpruned" not in others
    assert others["peak"][-1] == "met"


def test_times_of_the_arms() -> None:
    text = page(of_speed(prefill_vs_unpruned=0.25))
    section = part(text, "internvl3-1b on cpu")
    arms, ratios = cells(section), cells(section, 1)
    assert arms["unpruned"] == ["-", "-", "-", "10", *["2.00 s"] * 3, "6.00 s", "2.00 s", "1e+03 B", "9.77 KiB", "1 G"]
    assert arms["ptp"][:5] == ["50%", "0", "-", "6", "1.00 s"]
    assert ratios["prefill to unpruned"] == ["0.2500", "0.1250", "0.5000"]
    assert ratios["KV cache to unpruned"][0] == "0.6000"
    for told in (
        "Abacus 3000",
        "threads 2",
        "float32",
        "torch 2.13.0",
        "24 of 24 decoder layers",
        "4 tiles of noise, 8 visual",
    ):
        assert told in section
    assert "Only" not in section
    for cut in ({"layers": 6, "vision_layers": 6}, {"vision_layers": 4}):
        shallow = of_speed(**cut)
        assert f"Only {shallow.layers} of 24 decoder layers and {shallow.vision_layers} of 24" in page(shallow)


def test_what_was_not_measured_is_said() -> None:
    def missing(*files: rows.Results) -> str:
        return part(page(*files), "Not measured")

    for what in (
        "models other than ptprune-tiny",
        "the test split",
        "on a CPU",
        "on a GPU",
        "of ptp, ptp-paper, random",
    ):
        assert what in missing()
    told = missing(of_accuracy(measured("ptp", 0.5, 1), split="dev"), of_speed(layers=6))
    for what in ("on a GPU", "the test split", "all of its layers", "accuracy of ptp-paper, random, "):
        assert what in told
    assert "on a CPU" not in told
    whole = dict.fromkeys(("layers", "layers_of_shape", "vision_layers", "vision_layers_of_shape"))
    everything = of_accuracy(*(measured(method, 0.5, 1) for method in METHODS), model="owner/name")
    checkpoint = of_speed(device="cuda:1", **whole)
    assert "- " not in missing(everything, of_speed(), of_speed(layers=6), checkpoint)
    assert "not measured" in page(of_accuracy())  # a file without rows


def test_numbers_of_papers_stand_apart() -> None:
    text = page(of_accuracy(NONE, measured("fastv", 0.5, FAIR)), rows.PublishedResults(tables=[PAPER]))
    ours, theirs = text.split("## What the papers report")
    assert cells(part(theirs, "Theirs")) == {"": ["640", "160", "source"], "FastV": ["91.5", "-", "A paper"]}
    assert "LLaVA" in theirs
    assert "91.5" not in ours
    assert "fastv" not in theirs
    collected = read(PUBLISHED)
    assert isinstance(collected, rows.PublishedResults)
    for table in collected.tables:
        shown = cells(part(page(collected), table.title))
        for row in table.rows:
            assert shown[row.method] == [*("-" if v is None else f"{v:g}" for v in row.values), row.source]


def test_where_a_model_lies_is_not_said() -> None:
    for lies in ("/home/me/secret/my-model", "../secret/my-model/", "~/secret/my-model", "C:\\secret\\my-model"):
        text = page(of_accuracy(NONE, model=lies), of_speed(shape=lies))
        assert "### my-model, " in text
        assert "### my-model on cpu" in text
        assert "secret" not in text
    assert "### OpenGVLab/InternVL3-2B-hf, " in page(of_accuracy(NONE, model="OpenGVLab/InternVL3-2B-hf"))


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
    result = report(*arguments).silent
    written = [out, *(tmp_path / "my results" / name for name in ("accuracy-1.png", "speed-1.png"))]
    assert result.out.splitlines() == [str(path) for path in written]
    text = out.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [tmp_path / link.replace("%20", " ") for link in links] == written[1:]
    assert all(path.read_bytes()[1:4] == b"PNG" for path in written[1:])
    for row in json.loads(answers.read_text())["results"]:
        assert f"{row['accuracy']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" in text
    assert str(tmp_path) not in text
    before = [path.read_bytes() for path in written]
    assert report(*arguments).code == 0
    assert [path.read_bytes() for path in written] == before


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"accuracy": "75"}, "results.0.accuracy"),
        ({"method": "guess"}, "results.0.method"),
        ({"keep_ratio": None}, "results.0.keep_ratio"),
        ({"settings": {"layer": "2"}}, "results.0.settings.layer"),
        ({"kept_tokens": 0.0, "method": "none"}, "results.0.kept_tokens"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used(report: Command, tmp_path: Path, change: dict[str, Any], place: str) -> None:
    path = tmp_path / "file.json"
    save(path, of_accuracy(measured("ptp", 0.5, 30)))
    document = json.loads(path.read_text())
    document["results"][0] |= change
    path.write_text(json.dumps(document))
    refused(report(path, "--out", tmp_path / "page.md"), f"{path}: ", place)
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_have_no_place_or_come_twice(report: Command, tmp_path: Path) -> None:
    one, copy, out = tmp_path / "one.json", tmp_path / "copy.json", tmp_path / "page.md"
    save(one, of_accuracy(NONE))
    copy.write_text(json.dumps(json.loads(one.read_text())))
    refused(report(one, one, "--out", out), f"{one}: ", str(one))
    refused(report(one, copy, "--out", out), f"{copy}: ", str(one))
    refused(report(tmp_path / "no.json", "--out", out), str(tmp_path / "no.json"))
    refused(report(PUBLISHED.parent / "results" / "serving-cpu.json", "--out", out), "serving-cpu.json")
    refused(report("--out", out), "FILE")
    assert not out.exists()


def test_a_page_that_cannot_be_written(report: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, papers, out = tmp_path / "one.json", tmp_path / "papers.json", tmp_path / "page.md"
    save(one, of_accuracy(NONE, measured("ptp", 0.5, FAIR)))
    save(papers, rows.PublishedResults(tables=[PAPER]))
    refused(report(one), "--out")
    for bad in (tmp_path / "page.html", tmp_path / "nowhere" / "page.md"):
        refused(report(one, "--out", bad), f"--out {bad}")
    (tmp_path / "page").write_text("in the way")
    refused(report(one, "--out", out), str(tmp_path / "page"))
    (tmp_path / "page").unlink()
    (tmp_path / "page" / "accuracy-1.png").mkdir(parents=True)
    refused(report(one, "--out", out), "accuracy-1.png")
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    refused(report(one, "--out", out), "pip install 'ptprune[scenes]'")
    assert not out.exists()
    assert report(papers, "--out", out).code == 0  # nothing to draw


def test_work_has_a_table_where_it_was_counted() -> None:
    half = [measured(name, 0.5, FAIR) for name in ("ptp", "pyramiddrop", "random")]
    counted = [row.model_copy(update={"work": share}) for row, share in zip(half, (0.5123, 0.6, None), strict=True)]
    without, with_work = (page(of_accuracy(NONE, *each)).splitlines() for each in (half, counted))
    more = [line for line in with_work if line not in without and line.startswith("|")]
    assert more[-3:] == ["| ptp | 51.2% |", "| pyramiddrop | 60.0% |", "| random | not measured |"]
