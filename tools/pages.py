"""Prepares the pages of the site in ``build/docs``, without a second copy of any text: ``python -m tools.pages``.

``<!-- include: FILE -->`` is a file of the repository: Markdown as it is, anything else as a block of code.
``<!-- leaderboard -->`` is made from the files of results. Links out of ``docs/`` lead to the site's page of that file,
where there is one, and become plain text elsewhere.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

from tools.leaderboard import leaderboard

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")


def prepare(target: Path) -> None:
    """Write every page and picture of ``docs/`` into ``target``, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for page in target.rglob("*.md"):
        page.write_text(prepared(page.read_text(encoding="utf-8"), page.name), encoding="utf-8")


def prepared(markdown: str, name: str) -> str:
    """The text of a page, as the site shows it."""
    markdown = re.sub(r"^<!-- include: (\S+) -->$", lambda found: included(found[1]), markdown, flags=re.MULTILINE)
    if "<!-- leaderboard -->" in markdown:
        markdown = markdown.replace("<!-- leaderboard -->", leaderboard(ROOT / "benchmarks/results"))
    base = "" if name in set(PAGES.values()) - {"index.md"} else "docs"
    return LINK.sub(lambda found: link(found, base), markdown)


def included(name: str) -> str:
    """A file of the repository. Raises FileNotFoundError where there is none, which ends the build."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text if name.endswith(".md") else f'```python title="{name}"\n{text}```'


def link(found: re.Match[str], base: str) -> str:
    """A link as the site needs it.

    Args:
        base: folder of the file that holds it.
    """
    text, target, anchor = found[1], found[2], found[3] or ""
    path = posixpath.normpath(posixpath.join(base, target))
    if path in PAGES:
        return f"[{text}]({PAGES[path]}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{target}: linked to, but not there")
    return f"{text} (`{path}`)" if text != path else f"`{path}`"


if __name__ == "__main__":
    prepare(ROOT / "build/docs")
