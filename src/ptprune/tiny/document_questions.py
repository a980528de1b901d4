"""Questions about a page whose answer is one word or number of its print."""

from __future__ import annotations

import numpy as np

from .documents import Document
from .questions import Question, choose

DOCUMENT_KINDS = ("value-of-key", "key-of-value", "below")


def all_document_questions(document: Document) -> dict[str, list[Question]]:
    """Every question that the page determines, by kind. "Below" stays within a table."""
    lines = {(e.column, e.row, e.line): e for e in document.entries}
    found: dict[str, list[Question]] = {kind: [] for kind in DOCUMENT_KINDS}
    for e in document.entries:
        found["value-of-key"].append(Question("value-of-key", f"what is the value of {e.key}?", e.value))
        found["key-of-value"].append(Question("key-of-value", f"which key has {e.value}?", e.key))
        if (next_ := lines.get((e.column, e.row, e.line + 1))) is not None:
            found["below"].append(Question("below", f"what stands below {e.key}?", next_.key))
    return {kind: questions for kind, questions in found.items() if questions}


def ask_document(
    document: Document, count: int, seed: int | None = None, kinds: tuple[str, ...] = DOCUMENT_KINDS
) -> list[Question]:
    """``count`` different questions about ``document`` (fewer if it has fewer), kinds drawn evenly."""
    rng = np.random.default_rng([document.seed if seed is None else seed, 78])
    pool = all_document_questions(document)
    return choose({kind: questions for kind, questions in pool.items() if kind in kinds}, count, rng)
