"""The site: every page has its place, links lead to pages, and the leaderboard shows what the files of results hold.

``make docs`` builds it strictly; what needs no builder is checked here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tools.headline import MARK, WORLDS, headline
from tools.leaderboard import leaderboard
from tools.marked import between, write_between
from tools.pages import link, prepare

from ptprune.bench.accuracy import row_of
from ptprune.bench.candidates import Candidate
from ptprune.results.file import read, save
from ptprune.results.rows import AccuracyResults, Run, SuiteResults, SuiteRow

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site") / "docs"
    prepare(target)
    return target


def test_every_page_is_in_the_navigation(pages: Path) -> None:
    named = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(named) == sorted(page.name for page in pages.glob("*.md"))


def test_links_lead_to_pages_of_the_site(pages: Path) -> None:
    for page in pages.glob("*.md"):
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert "<!-- include" not in text
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            assert target.startswith("http") or (pages / target).is_file(), (page.name, target)


def test_links_out_of_the_pages_become_text() -> None:
    def of(text: str, base: str = "docs") -> str:
        found = re.match(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)", text)
        assert found is not None
        return link(found, base)

    assert of("[how](../README.md#limits)") == "[how](index.md#limits)"
    assert of("[how](guide.md)") == "[how](guide.md)"
    assert of("[how](docs/guide.md#x)", "") == "[how](guide.md#x)"
    assert of("[this](../LICENSE)") == "this (`LICENSE`)"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        of("[this](../nowhere)")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_files_that_are_added_can_be_read(path: Path) -> None:
    """What a pull request adds to the leaderboard is what ptprune wrote."""
    read(path)


def test_the_leaderboard_shows_every_measured_method() -> None:
    text = leaderboard(RESULTS)
    titles = re.findall("^## .*", text, flags=re.MULTILINE)
    assert len(set(titles)) == len(titles), "each tells its questions apart from the others"
    for path in RESULTS.glob("*.json"):
        results = read(path)
        if isinstance(results, AccuracyResults) and not any(row.variants for row in results.results):
            [section] = [part for part in text.split("\n## ") if f"`{path.name}`" in part]
            for row in results.results:
                if row.method not in ("none", "thumbnail"):
                    lines = [line for line in section.splitlines() if line.startswith(f"| {row.method}")]
                    assert any(f" {row.accuracy:.1f} " in line for line in lines), (row.method, row.keep_ratio)


def test_ranks_settings_and_names_that_are_no_markup(tmp_path: Path) -> None:
    assert leaderboard(tmp_path) == "No results yet."
    arms = [("none", 1.0, "1110", {}), ("ptp", 0.5, "1100", {}), ("fastv", 0.5, "1000", {"layer": 2})]
    arms += [("fastv", 0.5, "1110", {"layer": 3}), ("ptp", 0.1, "1000", {}), ("fastv", 0.1, "0000", {"layer": 2})]
    rows = [row_of(Candidate(method, ratio, given), right, 5.0, [""] * 4) for method, ratio, right, given in arms]
    run = Run(machine="Abacus <3000>", versions={"torch": "2|3"}, identity={})
    save(tmp_path / "a.json", AccuracyResults(model="a_b", items=4, split=None, runs=[run], results=rows))
    found = leaderboard(tmp_path)
    lines = [line.split(" | ")[0] for line in found.splitlines() if line.startswith("| ")][2:]
    # the one that was not measured at every ratio comes last, however good it is
    assert lines == ["| unpruned", "| ptp", "| fastv (layer=2)", "| fastv (layer=3)"]
    assert found.startswith("## a\\_b: 4 questions")
    assert "Abacus &lt;3000&gt;" in found
    assert "2\\|3" in found

    row = {"benchmark": "POPE", "questions": 1, "tokens": 9, "kept_tokens": 9, "seconds": 1.0}
    scores = [SuiteRow(method="none", keep_ratio=1.0, score=80.0, **row)]
    scores += [SuiteRow(method="ptp", keep_ratio=0.5, score=79.0 - 68 * run, run=run, **row) for run in (0, 1)]
    runs = [Run(machine="A", versions={}, identity={"model": name}) for name in ("other", "own")]
    (tmp_path / "a.json").unlink()
    suite = SuiteResults(model="own", suite="ptp13", limit=None, runs=runs, rows=scores, expected=None)
    save(tmp_path / "s.json", suite)
    found = leaderboard(tmp_path)
    assert "## own: POPE" in found
    assert "| ptp | 11.0 |" in found
    assert "79.0" not in found


def test_the_readme_shows_the_files_of_results() -> None:
    documents = {world: json.loads((RESULTS / f"accuracy-{world}.json").read_text()) for world in WORLDS}
    assert between((ROOT / "README.md").read_text(), MARK) == headline(documents), "run make results"


def test_the_best_other_is_of_one_ratio_and_layer() -> None:
    def row(method: str, ratio: float | None, accuracy: float, layer: int | None = 2) -> dict[str, object]:
        settings = {} if layer is None else {"layer": layer}
        return {"method": method, "keep_ratio": ratio, "accuracy": accuracy, "settings": settings}

    rows = [row("none", 1.0, 90.0, None), row("thumbnail", None, 9.0, None)]
    for ratio, dart, fastv in ((0.5, 70.0, 9.5), (0.25, 60.0, 61.0), (0.1, 50.0, 1.0), (0.05, 40.0, 41.25)):
        rows += [row("ptp", ratio, 80.0), row("ptp-paper", ratio, 75.0), row("random", ratio, 30.0)]
        rows += [row("dart", ratio, dart), row("fastv", ratio, fastv), row("fastv", ratio, 99.0, layer=3)]
        rows.append(row("downsample", ratio, 88.0, None))
        rows.append({**row("ptp", ratio, 99.5), "settings": {"layer": 2, "power": 7.0}})
    table = headline({"usual": {"items": 7, "results": rows}})
    assert "to 7 questions about 7 unseen" in table
    assert "the best of dart and fastv." in table
    assert table.splitlines()[-2:] == [
        "| usual scenes: **`ptp`** | 90.0 | 80.0 | 80.0 | 80.0 | 80.0 |",
        "| as in the paper (`ptp-paper`), best other, random | | "
        "75.0, 70.0, 30.0 | 75.0, 61.0, 30.0 | 75.0, 50.0, 30.0 | 75.0, 41.2, 30.0 |",
    ]


def test_only_the_marked_part_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- x:begin -->\nold\n\n<!-- x:end -->\nafter\n<!-- y:begin -->\nkept\n<!-- y:end -->\n")
    write_between(path, "x", "| new |")
    whole = "before\n<!-- x:begin -->\n| new |\n<!-- x:end -->\nafter\n<!-- y:begin -->\nkept\n<!-- y:end -->\n"
    assert path.read_text() == whole
    assert between(whole, "y") == "kept"
    for text in ("nothing", whole + whole):
        path.write_text(text)
        with pytest.raises(ValueError, match="unpack"):
            write_between(path, "x", "lost")
        assert path.read_text() == text
