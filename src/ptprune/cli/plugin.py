"""``--plugin FILE.py``: methods and scores of the user's own. The file is run, as Python runs any module."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from ptprune.errors import PtpruneError, UserError

NAME = "ptprune_plugin"
"""Of the module that the file becomes."""


def load(path: Path | None) -> dict[str, str]:
    """Run a file that defines methods or registers scores; None: nothing is run.

    A class that derives from ``TokenPruner`` becomes a method under the name that the file gives it in ``METHODS``,
    else under the name of the class.

    Returns:
        What identifies the file in results: nothing, or its hash.

    Raises:
        UserError: in one line, where the file cannot be read or run, adds nothing, or replaces a method of the package.
    """
    if path is None:
        return {}
    from ptprune.methods import METHODS
    from ptprune.scores import INSTRUCTION_SCORES, REGION_SCORES, TOKEN_SCORES

    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--plugin {path}: {'not a .py file' if path.exists() else 'no such file'}; give a Python file")
    registries = (REGION_SCORES, TOKEN_SCORES, INSTRUCTION_SCORES)
    before, scores = dict(METHODS), [registry.names for registry in registries]
    module = _run(path)
    for name in before:
        if METHODS.get(name) is not before[name]:
            METHODS[name] = before[name]
            raise UserError(f"--plugin {path}: {name!r} is a method of ptprune; give yours another name")
    for cls in _methods_of(module):
        if cls not in METHODS.values():
            METHODS[cls.__name__] = cls
    added = {name: METHODS[name] for name in METHODS if name not in before}
    if not added and scores == [registry.names for registry in registries]:
        raise UserError(f"--plugin {path}: defines no class derived from TokenPruner and registers no score")
    for name, cls in added.items():
        try:
            cls().check_needs()
        except (PtpruneError, TypeError) as error:
            raise UserError(f"--plugin {path}: method {name}: {error}") from None
    return {"plugin": hashlib.sha256(path.read_bytes()).hexdigest()}


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        what = error.msg if isinstance(error, SyntaxError) else error
        place = f"line {line}: " if line else ""
        raise UserError(f"--plugin {path}: {place}{type(error).__name__}: {what}") from None
    return module


def _methods_of(module: ModuleType) -> list[type]:
    """The classes of a module that choose tokens: derived from ``TokenPruner``, with a ``select`` or ``steps``."""
    from ptprune.pruner import TokenPruner

    return [
        one
        for one in vars(module).values()
        if isinstance(one, type)
        and issubclass(one, TokenPruner)
        and one.__module__ == module.__name__
        and not one.__name__.startswith("_")
        and (one.select is not TokenPruner.select or one.steps is not TokenPruner.steps)
    ]
