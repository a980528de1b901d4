"""Answers visitors, with and without pruning, and chooses tokens again when they change the settings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from ptprune.app.form import Form, Prompt
from ptprune.app.look import Look, remembering
from ptprune.app.models import Models
from ptprune.app.trouble import open_upload
from ptprune.app.turns import Turns
from ptprune.app.visit import Answered, Shown, Visit
from ptprune.asking.answer import WARM_UP_TOKENS, ask
from ptprune.asking.chat import check_length, make_prompt
from ptprune.asking.loaded import LoadedModel
from ptprune.draw import MAX_SIDE
from ptprune.pruner import TokenPruner
from ptprune.report import PruningReport
from ptprune.scores.evidence import ImageEvidence

UNPRUNED, PRUNED, DOING = "unpruned", "pruned", "doing"


class Word(NamedTuple):
    """Something that is said while an answer is made: a piece of an answer, or what is being done."""

    of: str  # UNPRUNED, PRUNED or DOING
    text: str


class Left(Exception):
    """Nobody waits for the answer any more."""


class NothingAsked(Exception):
    """Tokens can be chosen again only for a picture and a question that were asked about."""


@dataclass
class Desk:
    """Where visitors ask. One for the whole page."""

    models: Models
    turns: Turns = field(default_factory=Turns)
    _warm: WeakSet[Any] = field(default_factory=WeakSet)  # models that have answered before

    def answer(self, form: Form, visit: Visit) -> Generator[Word, None, Answered]:
        """Ask the model, without pruning too if the form says so, one after the other: neither slows the other down.

        Yields what is said while it goes on, and returns the answers; ``visit`` then shows them.

        Raises:
            PtpruneError: where the form, the picture, the model or the prompt is refused.
            Left: where ``visit.stop`` was set.
        """
        prompt = form.prompt()
        form.pruner()  # refused before anything waits
        self.models.check(prompt.model)
        visit.stop.set()  # of what this visitor asked before
        visit.stop = stop = threading.Event()

        def work(say: Callable[[Any], None]) -> Shown:
            self._check(stop)
            if not self.models.has(prompt.model):
                say(Word(DOING, f"loading {prompt.model}"))
            loaded, picture, inputs = self._prepare(prompt, form.max_new_tokens)
            pruner = form.pruner(loaded.encodes_apart)
            loaded.check_pruners([pruner])  # refused before anything is computed
            self._warm_up(loaded, pruner, inputs, say)
            unpruned = None
            if form.compare:
                say(Word(DOING, "answering without pruning"))
                unpruned = _stream(loaded, inputs, None, form, stop, lambda text: say(Word(UNPRUNED, text)))
            say(Word(DOING, "answering with pruning"))
            seen: list[ImageEvidence] = []
            with (recorder := remembering(pruner, seen)).reports() as reports:
                pruned = _stream(loaded, inputs, recorder, form, stop, lambda text: say(Word(PRUNED, text)))
            answered = Answered(form, pruned, unpruned, reports[0])
            picture.thumbnail((MAX_SIDE, MAX_SIDE))
            look = Look.of(pruner, seen, inputs)
            return Shown(prompt, picture, answered, look, form, answered.report, loaded.encodes_apart)

        visit.shown = shown = yield from self.turns.follow(work)
        return shown.answered

    def choose(self, form: Form, visit: Visit) -> bool:
        """Choose the tokens of what was asked about again, with other settings; ``visit`` then shows them.

        Returns:
            Whether the picture had to be encoded again, because the settings see other evidence.

        Raises:
            NothingAsked: where this picture and question were not asked about.
            PtpruneError: where the settings are refused.
        """
        form.pruner()  # refused whatever is shown
        shown = visit.shown
        if shown is None or form.picture is None or not form.question or form.prompt() != shown.prompt:
            raise NothingAsked
        pruner = form.pruner(shown.encodes_apart)
        again = not shown.look.serves(pruner)
        if again:
            look, report = self.turns.run(lambda: self._look(shown.prompt, pruner))
        else:
            look, report = shown.look, shown.look.choose(pruner)
        if visit.shown is not None and visit.shown.answered is shown.answered:  # nothing else was asked meanwhile
            visit.shown = replace(shown, look=look, form=form, report=report)
        return again

    def _look(self, prompt: Prompt, pruner: TokenPruner) -> tuple[Look, PruningReport]:
        """Encode a picture and a question for these settings: one prefill."""
        loaded, _, inputs = self._prepare(prompt, 1)
        seen: list[ImageEvidence] = []
        with (recorder := remembering(pruner, seen, always=True)).reports() as reports:
            ask(loaded.model, loaded.processor, inputs, recorder, 1)
        return Look.of(pruner, seen, inputs), reports[0]

    def _prepare(self, prompt: Prompt, max_new_tokens: int) -> tuple[LoadedModel, Image.Image, Any]:
        picture = open_upload(prompt.picture)
        loaded = self.models.get(prompt.model, prompt.max_tiles)
        inputs = make_prompt(loaded.model, loaded.processor, [picture], prompt.question, loaded.image_options)
        check_length(loaded.model, inputs, max_new_tokens)
        return loaded, picture, inputs

    def _warm_up(self, loaded: LoadedModel, pruner: TokenPruner, inputs: Any, say: Callable[[Any], None]) -> None:
        """The first call initialises kernels and buffers: no answer's time shall hold that."""
        if loaded.model not in self._warm:
            say(Word(DOING, "warming up"))
            for arm in (None, pruner):
                ask(loaded.model, loaded.processor, inputs, arm, WARM_UP_TOKENS)
            self._warm.add(loaded.model)

    @staticmethod
    def _check(stop: threading.Event) -> None:
        if stop.is_set():
            raise Left


def _stream(
    loaded: LoadedModel,
    inputs: Any,
    pruner: TokenPruner | None,
    form: Form,
    stop: threading.Event,
    say: Callable[[str], None],
) -> Any:
    """``ask``, telling each piece of the answer as it comes. Raises Left where it was stopped."""
    answer = ask(
        loaded.model,
        loaded.processor,
        inputs,
        pruner,
        form.max_new_tokens,
        streamer=_Pieces(loaded.processor.tokenizer, say),
        stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
    )
    Desk._check(stop)
    return answer


class _Pieces(TextStreamer):
    """Gives each finished piece of text to a function."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._say(text)


class _Stop(StoppingCriteria):
    """Ends the answer when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
