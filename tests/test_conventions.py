"""One place for what is known of transformers: the next rename is a change in one file."""

from __future__ import annotations

import ast
from pathlib import Path

import ptprune
from ptprune import conventions

ROOT = Path(ptprune.__file__).parent
# "cache" is a word of everyday use; what reads it goes through the old name's twin
NAMES = {
    "past_key_values",
    "get_image_features",
    "get_video_features",
    conventions.ROTARY,
    conventions.POSITIONS,
    conventions.MASK,
    conventions.ENCODED,
    *conventions.GENERATE_OPTIONS,
}
ELSEWHERE = {"vllm"}  # an engine with names of its own


def named_in(path: Path) -> set[str]:
    """Names in code: attributes, keywords and whole strings, but no docstrings, comments or parameters of ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_only_one_file_knows_the_names_of_transformers():
    files = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in ELSEWHERE]
    assert len(files) > 100
    guilty = {str(path.relative_to(ROOT)): sorted(NAMES & named_in(path)) for path in files if NAMES & named_in(path)}
    assert set(guilty) == {"conventions.py"}, guilty
