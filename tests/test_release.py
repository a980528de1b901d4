"""One version everywhere; ``make release-check`` looks into what is built from it."""

from __future__ import annotations

import re
from pathlib import Path

import ptprune

ROOT = Path(__file__).parents[1]


def test_one_version_everywhere() -> None:
    version = re.escape(ptprune.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert re.search(
        rf"^## \[{version}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )


def test_every_file_that_the_sdist_names_is_there() -> None:
    listed = re.search(r"^include = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert listed is not None
    named = re.findall(r'"/([^"]+)"', listed[1])
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists() and name != "SECURITY.md"] == []
