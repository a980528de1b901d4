"""The documents that a page is written from: what kind each is, and that it holds what the page needs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptprune.errors import UserError

Document = dict[str, Any]

# How a document has to look: a type or several, {key: ...} for an object with these keys, [...] for a list.
NUMBER, TEXT, OBJECT = (int, float), (str,), (dict,)
NONE = type(None)
SPREAD = {"median": NUMBER, "min": NUMBER, "max": NUMBER}
ACCURACY = {
    "model": TEXT,
    "items": (int,),
    "split": (str, NONE),
    "identity": {"model": TEXT, "items": TEXT, "dtype": TEXT, "max_new_tokens": (int,)},
    "results": [
        {
            "method": TEXT,
            "keep_ratio": (*NUMBER, NONE),
            "settings": OBJECT,
            "accuracy": NUMBER,
            "low": NUMBER,
            "high": NUMBER,
            "retention": (*NUMBER, NONE),
            "by_kind": OBJECT,
            "kept_tokens": NUMBER,
            "right": TEXT,
        }
    ],
}
TIMES = dict.fromkeys(("vision_s", "select_s", "prefill_s", "decode_s_per_token", "ttft_s"), SPREAD)
SPEED = {
    **dict.fromkeys(("shape", "device", "machine", "dtype", "attention"), TEXT),
    **dict.fromkeys(("batch", "rounds", "new_tokens", "threads", "tiles"), (int,)),
    **dict.fromkeys(("layers", "layers_of_shape", "vision_layers", "vision_layers_of_shape"), (int, NONE)),
    "versions": OBJECT,
    "tokens": {"visual": (int,), "other": (int,), "before": (int,), "after": OBJECT},
    "rows": [
        {
            "arm": TEXT,
            "method": (str, NONE),
            "keep_ratio": (*NUMBER, NONE),
            "layer": (int, NONE),
            "tokens": (int,),
            **TIMES,
            "peak_bytes": (int, NONE),
            "kv_bytes": (int,),
            "macs": (dict, NONE),
        }
    ],
    "ratios": OBJECT,
}
SPREADS = ("prefill_vs_unpruned", "prefill_vs_ideal", "select_share", "ttft_vs_unpruned", "decode_vs_unpruned")
RATIOS = {**dict.fromkeys(SPREADS, SPREAD), "kv": NUMBER, "peak": (*NUMBER, NONE)}
PUBLISHED = {
    "published": [
        {
            "title": TEXT,
            "model": TEXT,
            "unit": TEXT,
            "columns": [TEXT],
            "rows": [{"method": TEXT, "values": [(*NUMBER, str, NONE)], "source": TEXT}],
        }
    ]
}
KINDS: dict[str, dict[str, Any]] = {"accuracy": ACCURACY, "speed": SPEED, "published": PUBLISHED}


@dataclass
class Documents:
    """Documents by kind, in the order in which they were given."""

    accuracy: list[Document] = field(default_factory=list)
    speed: list[Document] = field(default_factory=list)
    published: list[Document] = field(default_factory=list)


def read(paths: Sequence[Path]) -> Documents:
    """Read and check all files.

    Raises:
        UserError: for a file that cannot be read, is of no known kind, lacks something, or was given before.
    """
    found = Documents()
    known: dict[str, Path] = {}
    for path in paths:
        document = _load(path)
        kind = _kind(document)
        if kind is None:
            raise UserError(
                f"{path}: not a document of this command; give what `ptprune bench accuracy --out` or "
                '`ptprune bench speed --out` wrote, or numbers of papers under "published"'
            )
        _check(document, KINDS[kind], str(path), "")
        CHECKS[kind](document, str(path))
        content = json.dumps(document, sort_keys=True)
        if content in known:
            raise UserError(f"{path}: the same as {known[content]}; give each document once")
        known[content] = path
        getattr(found, kind).append(document)
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give JSON files of `ptprune bench`") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"{path}: cannot be read ({reason}); give JSON files of `ptprune bench`") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give JSON files of `ptprune bench`") from None


def _kind(document: Any) -> str | None:
    """By its outermost keys."""
    keys: set[str] = set(document) if isinstance(document, dict) else set()
    return next((name for name, pattern in KINDS.items() if set(pattern) <= keys), None)


def _check(value: Any, pattern: Any, path: str, where: str) -> None:
    """Raises UserError for the first place where a document does not look as it has to."""
    if isinstance(pattern, dict):
        _require(isinstance(value, dict), path, where, "an object")
        for key, inner in pattern.items():
            _require(key in value, path, f"{where}.{key}".lstrip("."), "there")
            _check(value[key], inner, path, f"{where}.{key}".lstrip("."))
    elif isinstance(pattern, list):
        _require(isinstance(value, list), path, where, "a list")
        for number, entry in enumerate(value):
            _check(entry, pattern[0], path, f"{where}[{number}]")
    else:
        names = {str: "a text", int: "a number", float: "a number", dict: "an object", NONE: "null"}
        right = isinstance(value, pattern) and not isinstance(value, bool)
        right = right and not (isinstance(value, float) and not math.isfinite(value))
        _require(right, path, where, " or ".join(dict.fromkeys(names[kind] for kind in pattern)))


def _require(right: bool, path: str, where: str, what: str) -> None:
    if not right:
        raise UserError(f"{path}: {where} must be {what}; give the file as the benchmark wrote it")


def _check_accuracy(document: Document, path: str) -> None:
    from ptprune.bench.accuracy import UNPRUNED, WITHOUT_PRUNER
    from ptprune.bench.views import THUMBNAIL
    from ptprune.methods import METHODS

    _require(document["items"] > 0, path, "items", "at least 1")
    for number, row in enumerate(document["results"]):
        where = f"results[{number}]"
        known = row["method"] in METHODS or row["method"] in WITHOUT_PRUNER
        _require(known, path, f"{where}.method", f"a method that this version knows, not {row['method']!r}")
        digits = len(row["right"]) == document["items"] and set(row["right"]) <= {"0", "1"}
        _require(digits, path, f"{where}.right", f"{document['items']} digits 0 or 1")
        _require(row["method"] != UNPRUNED or row["kept_tokens"] > 0, path, f"{where}.kept_tokens", "over 0")
        told = row["method"] == THUMBNAIL or row["keep_ratio"] is not None
        _require(told, path, f"{where}.keep_ratio", "a number")
        if row["method"] in METHODS:
            _check(row["settings"], {"layer": (int,)}, path, f"{where}.settings")
        for kind, value in row["by_kind"].items():
            _check(value, NUMBER, path, f"{where}.by_kind.{kind}")


def _check_speed(document: Document, path: str) -> None:
    arms = [row["arm"] for row in document["rows"]]
    _require(arms.count("unpruned") == 1, path, "rows", "a list with one unpruned arm")
    pruned = [row["method"] for row in document["rows"] if row["arm"] == "pruned"]
    _require(
        set(document["ratios"]) == set(pruned), path, "ratios", f"about {', '.join(map(str, pruned)) or 'nothing'}"
    )
    for number, row in enumerate(document["rows"]):
        if row["macs"] is not None:
            _check(row["macs"], {"first_token": NUMBER}, path, f"rows[{number}].macs")
    for method, ratios in document["ratios"].items():
        _check(ratios, RATIOS, path, f"ratios.{method}")
        _check(document["tokens"]["after"], {method: (int,)}, path, "tokens.after")


def _check_published(document: Document, path: str) -> None:
    for number, entry in enumerate(document["published"]):
        for place, row in enumerate(entry["rows"]):
            where = f"published[{number}].rows[{place}]"
            columns = len(entry["columns"])
            _require(len(row["values"]) == columns, path, f"{where}.values", f"{columns}, one a column")
            _require(bool(row["source"].strip()), path, f"{where}.source", "where the numbers are from")


CHECKS = {"accuracy": _check_accuracy, "speed": _check_speed, "published": _check_published}
"""What a pattern cannot say."""
