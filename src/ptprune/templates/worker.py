"""Renders chat templates in a process of its own that may use little of the machine; see ``ptprune.templates``.

Run as a script, it imports jinja2 and nothing of this package. It reads one JSON object a line, ``{"template",
"variables", "chats"}``, and answers each in one line: ``{"texts"}``, or ``{"error"}`` in words.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 1 << 29  # bytes of address space
TEMPLATES = 16  # compiled ones that are kept


def environment() -> Any:
    """Jinja's sandbox as transformers sets it up for chat templates: the same filters, tags and spaces."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what the model wrote; here it writes what stands inside."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **more)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def limit() -> None:
    """Give this process little memory, and no file to write into, where the system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows: the deadline alone holds
        return
    for name, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (most, most))


def answer(request: dict[str, Any], make: Any, compiled: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    try:
        template = request["template"]
        if template not in compiled:
            if len(compiled) >= TEMPLATES:
                compiled.clear()
            compiled[template] = make.from_string(template)
        texts = [compiled[template].render(messages=chat, **request["variables"]) for chat in request["chats"]]
        if sum(map(len, texts)) > request["most"]:
            return {"error": f"writes more than {request['most']} characters"}
        return {"texts": texts}
    except MemoryError:
        return {"error": "needs too much memory"}
    except BaseException as error:  # whatever a template raises, SystemExit too
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    make, compiled = environment(), {}  # type: ignore[var-annotated]
    limit()
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(json.dumps(answer(json.loads(line), make, compiled)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
