"""Where lmms-eval speaks while ``ptprune eval`` runs it. To be set up before lmms-eval is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from ptprune.errors import UserError
from ptprune.lmms.processes import processes


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """What lmms-eval and the libraries behind it say goes to a file, one for each process.

    Raises:
        UserError: where it cannot be written.
    """
    index = processes().process_index
    own = path.with_name(f"{path.stem}-{index}{path.suffix}") if index else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = own.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path.parent}: cannot be written ({error.strerror or error})") from None
    with log, redirect_stdout(log), redirect_stderr(log):
        yield
