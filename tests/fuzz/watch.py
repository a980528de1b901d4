"""What no case may do, whatever it is made of: watched by audit events of Python, an alarm and the memory's peak."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 10, 2 << 30
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "pickle.find_class", "ctypes.dlopen")
LINE = re.compile("[^\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]+")


class Broken(Exception):
    """A case did what none may."""


class Late(BaseException):
    """A case took too long. No Exception: the code under test turns these into sentences."""


class _Watch:
    folder: Path | None = None
    seen: list[str] = []


def _listen(event: str, args: tuple[Any, ...]) -> None:
    folder = _Watch.folder
    if folder is None:
        return
    if (
        event == "open"
        and isinstance(args[0], str | bytes)
        and isinstance(args[2], int)
        and args[2] & WRITES
        or event in CHANGES
    ):
        _judge(event, args[0], folder)
    elif event in RUNS or (event == "subprocess.Popen" and "worker.py" not in str(args[1])):
        _Watch.seen.append(f"{event} {args[:2]!r}")
    elif event == "exec" and str(folder) in str(getattr(args[0], "co_filename", "")):
        _Watch.seen.append(f"ran {args[0]!r}")


def _judge(event: str, name: Any, folder: Path) -> None:
    path = os.path.realpath(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else str(name)
    if not path.startswith((str(folder), "/dev/null")):
        _Watch.seen.append(f"{event} {path!r}")


sys.addaudithook(_listen)
sys.dont_write_bytecode = True


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raises Broken where the block takes too long or too much memory, runs anything, or writes outside the folder."""

    def late(*_: object) -> None:
        raise Late(f"more than {SECONDS} s")

    # of this process's own time: other programs may keep the machine busy; and of the clock, for what only waits
    timers = {signal.ITIMER_PROF: (signal.SIGPROF, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, 6 * SECONDS)}
    before = {number: signal.signal(number, late) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    _Watch.folder, _Watch.seen, held = Path(os.path.realpath(folder)), [], _memory_from_now_on()
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _Watch.folder = None
    if _Watch.seen:
        raise Broken("; ".join(_Watch.seen[:5]))
    if (taken := _peak() - held) > MEMORY:
        raise Broken(f"{taken >> 20} MiB of memory")


def _memory_from_now_on() -> int:
    """Forget the peak so far, which other tests of this process may have made. Returns the bytes that are held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # the peak of all tests counts then
        return 0
    return _peak()


def _peak() -> int:
    """The most bytes that this process held."""
    try:
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return int(peak) << 10


def check_line(message: str, start: str = "") -> None:
    """A message is one line of readable text, and begins like this."""
    if not LINE.fullmatch(message) or not message.startswith(start):
        raise Broken(f"not one readable line: {message[:500]!r}")


def check_command(call: Callable[[], Any], capsys: Any) -> int:
    """Exit status of the command: 0 with a result, or 2 with one line and no result."""
    capsys.readouterr()
    try:
        call()
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    lines = said.err.splitlines()
    for line in lines:
        check_line(line)
    if code == 0:
        if not said.out.strip():
            raise Broken("status 0 without a result")
    elif code != 2 or said.out or not lines or not all(line.startswith("ptprune: ") for line in lines):
        raise Broken(f"status {code}, {said.out[:200]!r}, {said.err[:500]!r}")
    return int(code)
