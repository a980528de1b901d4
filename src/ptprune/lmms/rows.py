"""Results that survive a kill: a row is on the disk before the next one begins, and found again by what it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ptprune.errors import UserError
from ptprune.results.file import save, write_whole

ROWS, DOCUMENT, TABLE, ANSWERS = "rows.json", "results.json", "results.md", "answers"
FIELDS = ("benchmark", "method", "keep_ratio", "settings", "score", "questions", "tokens", "kept_tokens", "seconds")


class Rows:
    """All rows of a folder, those of earlier runs with other models and options too.

    Args:
        folder: made where it is missing.

    Raises:
        UserError: where it cannot be written, or holds a file that is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / ROWS
        try:
            (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
            known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
            self._rows = {self.key(row, row["identity"]): {name: row[name] for name in FIELDS} | row for row in known}
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be written ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--out {folder}: its {ROWS} is not from this command; give another folder") from None

    @staticmethod
    def key(row: dict[str, Any], identity: dict[str, Any]) -> str:
        """What a row was computed from."""
        told = [row[name] for name in ("benchmark", "method", "keep_ratio", "settings")]
        return json.dumps([*told, identity], sort_keys=True)

    def find(self, row: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any] | None:
        """The finished row of an arm, without its identity."""
        found = self._rows.get(self.key(row, identity))
        return None if found is None else {name: found[name] for name in FIELDS}

    def add(self, row: dict[str, Any], identity: dict[str, Any], answers: list[dict[str, Any]]) -> None:
        """Keep a row, and what was answered."""
        self._rows[self.key(row, identity)] = {**row, "identity": identity}
        save(self.folder / ROWS, {"rows": list(self._rows.values())})
        name = f"{row['benchmark']}-{row['method']}-{row['keep_ratio']:g}.jsonl".replace("*", "star")
        text = "".join(json.dumps(answer, default=str) + "\n" for answer in answers)
        self._write(self.folder / ANSWERS / name, text)

    def publish(self, document: dict[str, Any], table: str) -> None:
        """Keep the document and the table of this run."""
        save(self.folder / DOCUMENT, document)
        self._write(self.folder / TABLE, table)

    def _write(self, path: Path, text: str) -> None:
        try:
            write_whole(path, text)
        except OSError as error:
            raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from None
