"""Chat templates: programs from a checkpoint, run in a process of their own with a bound on time, memory and output.

A template is written in Jinja, and its loops and powers may take for ever or all memory, sandbox or not. Only another
process can be stopped whatever it does. One such process serves all questions of this one: it starts while a model is
being loaded, and a rendered prompt then costs what two lines through a pipe cost.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptprune.bounds import MAX_PROMPT, MAX_TEMPLATE
from ptprune.errors import SettingError
from ptprune.text import is_text

SECONDS = 5.0
"""Until a template that is still running is stopped."""
START = 30.0
"""Seconds that the process may take besides, for its first answer: machines are busy."""
LONGEST = 12 * MAX_PROMPT
"""Bytes of an answer: a character beyond 16 bits is twelve in JSON."""


class Renderer:
    """The process, started when it is first needed, and again after it was stopped or this process was forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._answered = 0, False
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the process, so that it is there when the first question comes. Does not wait for it."""
        with self._lock:
            self._running()

    def render(self, template: str, chats: Sequence[Any], variables: Mapping[str, Any]) -> list[str]:
        """The texts of chats, each a list of messages.

        Args:
            variables: what a template may use besides ``messages``.

        Raises:
            SettingError: where the template is too long, fails, or needs more than a few seconds, or much memory.
        """
        if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
            raise SettingError(f"model: its chat template is longer than {MAX_TEMPLATE} characters, or no text")
        request = {"template": template, "chats": list(chats), "variables": dict(variables), "most": MAX_PROMPT}
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            answer = self._ask(line)
        if "texts" not in answer:
            raise SettingError(f"model: its chat template cannot be used ({answer['error']}); give another checkpoint")
        if not all(map(is_text, answer["texts"])):
            raise SettingError("model: its chat template writes what is no text; give another checkpoint")
        return list(answer["texts"])

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answered = self._answers.get(timeout=SECONDS + (0 if self._answered else START))
        except OSError:
            answered = b""
        except queue.Empty:
            self._stop()
            return {"error": f"runs longer than {SECONDS:g} s"}
        except BaseException:  # Ctrl-C too: what it would answer later is no answer to the next question
            self._stop()
            raise
        if not answered.endswith(b"\n"):
            self._stop()
            return {"error": "needs too much memory, or ended its process"}
        self._answered = True
        return dict(json.loads(answered))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        found = [find_spec(name) for name in ("jinja2", "markupsafe")]
        places = [str(Path(spec.origin).parents[1]) for spec in found if spec is not None and spec.origin]
        prepare = f"import sys; sys.path += {places!r}; sys.dont_write_bytecode = True"
        script = str(Path(__file__).with_name("worker.py"))
        run = f"{prepare}; import runpy; runpy.run_path({script!r}, run_name='__main__')"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=-1,
            env={"PATH": os.environ.get("PATH", ""), "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")},
        )
        self._owner, self._answered, self._answers = os.getpid(), False, queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()


def _read(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """Hand on what the process answers, line by line, and nothing at its end."""
    assert process.stdout is not None
    with suppress(OSError, ValueError):  # closed
        line = b"first"
        while line:
            line = process.stdout.readline(LONGEST)
            answers.put(line)


RENDERER = Renderer()
atexit.register(RENDERER.close)


def template_of(processor: Any) -> str | None:
    """The chat template of a processor, or else of its tokenizer; the default one of several; None if there is none."""
    parts = (processor, getattr(processor, "tokenizer", None))
    found = next((found for part in parts if (found := getattr(part, "chat_template", None))), None)
    return found.get("default") if isinstance(found, dict) else found


def require_template(processor: Any) -> str:
    """``template_of``. Raises SettingError where there is none."""
    if not (template := template_of(processor)):
        raise SettingError("model: the checkpoint has no chat template; give an instruction-tuned one")
    return template


def render_chats(processor: Any, chats: Sequence[Any], *, answer: bool = True) -> list[str]:
    """Chats as text, as ``apply_chat_template`` of transformers writes them.

    Args:
        processor: or a tokenizer.
        chats: each a list of messages, of plain dicts, lists and strings.
        answer: whether the beginning of an answer stands at the end.

    Raises:
        SettingError: where there is no template, or it cannot be used; see ``Renderer.render``.
    """
    template = require_template(processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    names = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    # None, as transformers has them: templates ask whether they are there
    variables = {**names, "tools": None, "documents": None, "add_generation_prompt": answer}
    return RENDERER.render(template, chats, variables)
