"""Files from outside and files for users: read within bounds, written beside and renamed into place."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ptprune.errors import UserError

JSON_BYTES = 1 << 24
"""Most bytes of a configuration; those of published models have some 10 KB."""
JSON_DEPTH = 64
"""Most lists and objects inside each other."""


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """What a JSON file holds.

    Args:
        limit: most bytes that the file may have.

    Raises:
        OSError: where it cannot be read, or is no regular file.
        ValueError: in one line, where it is too large, or no JSON that can be used.
    """
    if not path.is_file():  # a pipe or a device would never end
        raise FileNotFoundError(f"{path.name}: no such file")
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} is larger than {limit >> 20} MiB")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8") from None
    except ValueError as error:  # also a number of more digits than Python reads
        raise ValueError(f"{path.name} is no JSON: {error}") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [inner for outer in level for inner in _members(outer)]
    if level:
        raise ValueError(f"{path.name} is nested too deeply")
    return value


def _members(value: Any) -> Iterable[Any]:
    """What a list or an object holds; nothing for anything else."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def inside(folder: Path, name: str) -> Path:
    """The path of a file that lies in a folder or below.

    Raises:
        UserError: where the name leads out of the folder, also through a link; before anything there is looked at, so
            that the message is the same whether there is such a file or not.
    """
    path = folder / name
    if "\0" in name:
        raise UserError(f"{name}: not a file name")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{name}: outside of its folder")
    return path


def check_writable(path: Path, option: str, inputs: Iterable[Path] = ()) -> None:
    """Raises UserError, naming the option, for a file that could not be written, before anything is computed.

    Args:
        inputs: files that were given to be read; none of them is written over, under whatever name.
    """
    with writing(f"{option} {path}"):  # a name may be too long, a folder closed
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{option} {path}: cannot be written there; give a file in a directory that exists")
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: not a file; give the name of a file")
        for given in inputs:
            if _same(path, given):
                raise UserError(f"{option} {path}: would write over {given}, which is an input; give another file")


def _same(path: Path, given: Path) -> bool:
    """Whether two names are the same file, also one that is yet to be written."""
    if os.path.realpath(path) == os.path.realpath(given):
        return True
    return path.exists() and given.exists() and path.samefile(given)


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Raises UserError, naming what it is, where something cannot be written inside."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be written ({error.strerror or error})") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` to write into, which takes its place at the end of the block.

    A reader never sees a part of it. A link of that name is replaced, not followed. Where the block raises, nothing is
    left behind, and ``path`` stays as it was. The new file has the suffix of ``path``.

    Raises:
        OSError: where it cannot be written.
    """
    beside = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # new: not a link that somebody put there
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step. Raises OSError where it cannot be written."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def make_folder(path: Path, what: str) -> None:
    """Make a folder for files of ours, unless there is one.

    Raises:
        UserError: where it cannot be made, or the name is a link, through which files would land elsewhere.
    """
    with writing(what):
        if path.is_symlink():
            raise UserError(f"{what}: a link, and files would land elsewhere; give its target")
        path.mkdir(parents=True, exist_ok=True)


def append_to(path: Path) -> TextIO:
    """A text file to write on at its end, made if it is missing. Raises OSError for a link, which is not followed."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")
