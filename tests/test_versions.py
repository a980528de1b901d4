"""The files that tell which versions are accepted and tested agree."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from packaging.version import Version

from ptprune.conventions import TESTED

ROOT = Path(__file__).parent.parent
TOOL = runpy.run_path(str(ROOT / "tools" / "versions.py"))


def padded(version: str) -> str:
    return ".".join([*version.split("."), "0", "0"][:3])


def test_the_oldest_versions_are_the_lower_bounds():
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    bounds = {name: padded(version) for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', dependencies)}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints-oldest.txt").read_text(), re.M))
    assert bounds == pinned


def rows_of_the_page() -> list[list[str]]:
    """Cells of the table, the header first."""
    table = (ROOT / "docs" / "versions.md").read_text().partition(TOOL["BEGIN"])[2].partition(TOOL["END"])[0].strip()
    if not table:
        pytest.skip("the table was not written yet: make versions")
    head, *rows = table.splitlines()
    assert [head, rows[0]] == TOOL["table"]({}).splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows[1:])]


def test_the_table_of_versions_is_what_the_tool_writes():
    head, *rows = rows_of_the_page()
    for row in rows:
        assert len(row) == len(head)
        assert re.fullmatch(r"`make ([\w-]+)`( \([\w-]+ \S+\))*", row[0])
        assert all(re.fullmatch(r"(\d+\.)+\d+\S*|", cell) for cell in row[1:])


def test_the_versions_of_transformers_are_those_of_the_table():
    head, *rows = rows_of_the_page()
    own = [row for row in rows if "test-eval" not in row[0] and "test-vllm" not in row[0]]
    found = sorted(Version(row[head.index("transformers")]) for row in own)
    assert f"{found[0].major}.{found[0].minor} to {found[-1].major}.{found[-1].minor}" == TESTED
