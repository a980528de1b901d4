"""What the page keeps of each visitor, and for how long: until the page is closed, and no longer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from ptprune.app.form import Form, Prompt
from ptprune.app.look import Look
from ptprune.asking.answer import Answer
from ptprune.pruner import TokenPruner
from ptprune.report import PruningReport

MOST = 64  # visitors at a time; beyond that the one who did nothing for longest is forgotten
PATIENCE = 3600.0  # seconds without a sign until a visitor counts as gone


@dataclass(frozen=True, eq=False)
class Answered:
    """What the model said to a prompt, and with which settings."""

    form: Form
    pruned: Answer
    unpruned: Answer | None
    report: PruningReport


@dataclass(frozen=True, eq=False)
class Shown:
    """What a visitor sees; replaced as a whole, so that nobody sees half of it.

    Attributes:
        prompt: what the model was asked.
        drawing: its picture, no larger than a drawing needs it.
        answered: the answers to it.
        look: the picture and the question as they are encoded.
        form, report: the settings, and what they keep; the slider may have changed both since the answers.
        encodes_apart: whether the model encodes tiles apart.
    """

    prompt: Prompt
    drawing: Image
    answered: Answered
    look: Look
    form: Form
    report: PruningReport
    encodes_apart: bool

    @property
    def pruner(self) -> TokenPruner:
        """What chose the tokens that are shown."""
        return self.form.pruner(self.encodes_apart)


@dataclass(eq=False)
class Visit:
    """One browser tab.

    Attributes:
        shown: None until the first answer.
        mapped: what the heat maps on the page were drawn of: settings but for the ratio, and the levels.
        stop: set when nobody waits for the answer that is being written.
        files: uploads of the visitor.
    """

    shown: Shown | None = None
    mapped: tuple[Form, list[str]] | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    files: set[Path] = field(default_factory=set)
    seen: float = field(default_factory=time.monotonic)


class Visits:
    """All visitors by the name that Gradio gives a session. For several threads."""

    def __init__(self) -> None:
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._visits)

    def get(self, session: str) -> Visit:
        """The visit of a session, a new one if need be."""
        now = time.monotonic()
        with self._lock:
            visit = self._visits.setdefault(session, Visit())
            visit.seen = now
            self._visits.move_to_end(session)
            gone = [name for name, each in self._visits.items() if now - each.seen > PATIENCE]
            gone += list(self._visits)[: max(0, len(self._visits) - len(gone) - MOST)]
        for name in gone:
            self.forget(name)
        return visit

    def forget(self, session: str) -> None:
        """Forget a visitor, stop what is computed for them, and delete their uploads unless others sent the same."""
        with self._lock:
            visit = self._visits.pop(session, None)
            if visit is None:
                return
            visit.stop.set()
            shared = {file for other in self._visits.values() for file in other.files}
            for file in visit.files - shared:
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everybody."""
        for session in list(self._visits):
            self.forget(session)
