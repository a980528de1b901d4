"""Questions about a scene whose answer is one word and is determined by the scene alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scenes import Scene, SceneObject
from .world import COLOURS, KINDS, SHAPES

QUESTION_KINDS = (
    "digit-by-colour",
    "colour-by-digit",
    "letter-by-colour",
    "shape-by-colour",
    "colour-by-shape",
    "letter-by-shape",
    "count",
    "exists",
)


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def _single(objects: list[SceneObject], attribute: str) -> list[SceneObject]:
    """Those objects whose attribute no other object of the list shares."""
    values = [getattr(o, attribute) for o in objects]
    return [o for o in objects if values.count(getattr(o, attribute)) == 1]


def all_questions(scene: Scene) -> dict[str, list[Question]]:
    """Every question that the scene determines, by kind. Kinds without any are left out."""
    found: dict[str, list[Question]] = {kind: [] for kind in QUESTION_KINDS}

    def add(kind: str, text: str, answer: str) -> None:
        found[kind].append(Question(kind, text, answer))

    of_kind = {kind: [o for o in scene.objects if o.kind == kind] for kind in KINDS}
    for kind in KINDS:
        for o in _single(of_kind[kind], "colour"):
            add(f"{kind}-by-colour", f"which {kind} is {o.colour}?", o.name)
        add("count", f"how many {kind}s are there?", str(len(of_kind[kind])))
    for o in _single(of_kind["digit"], "name"):
        add("colour-by-digit", f"what colour is the {o.name}?", o.colour)
    for o in _single(of_kind["shape"], "name"):
        add("colour-by-shape", f"what colour is the {o.name}?", o.colour)
        if o.beside is not None:
            add("letter-by-shape", f"which letter is next to the {o.name}?", scene.objects[o.beside].name)
    shown = {(o.colour, o.name) for o in of_kind["shape"]}
    colours, shapes = {c for c, _ in shown}, {s for _, s in shown}
    for colour in COLOURS:
        for shape in SHAPES:
            if (colour, shape) in shown:
                add("exists", f"is there a {colour} {shape}?", "yes")
            elif colour in colours or shape in shapes:  # only what is nearly there: an easy "no" teaches nothing
                add("exists", f"is there a {colour} {shape}?", "no")
    return {kind: questions for kind, questions in found.items() if questions}


def ask(scene: Scene, count: int, seed: int | None = None, kinds: tuple[str, ...] = QUESTION_KINDS) -> list[Question]:
    """``count`` different questions about ``scene`` (fewer if it has fewer), kinds drawn evenly, yes and no evenly."""
    rng = np.random.default_rng([scene.seed if seed is None else seed, 77])
    return choose({kind: questions for kind, questions in all_questions(scene).items() if kind in kinds}, count, rng)


def choose(pool: dict[str, list[Question]], count: int, rng: np.random.Generator) -> list[Question]:
    """``count`` different questions of a pool by kind, kinds drawn evenly, yes and no evenly."""
    pool = {kind: list(questions) for kind, questions in pool.items()}
    chosen: list[Question] = []
    while pool and len(chosen) < count:
        kind = list(pool)[int(rng.integers(len(pool)))]
        options = pool[kind]
        if kind == "exists":
            wanted = "yes" if rng.random() < 0.5 else "no"
            options = [q for q in options if q.answer == wanted] or options
        question = options[int(rng.integers(len(options)))]
        chosen.append(question)
        pool[kind].remove(question)
        if not pool[kind]:
            del pool[kind]
    return chosen


def caption(scene: Scene) -> str:
    """Everything in the scene, tile by tile: ``red 7, blue star``."""
    return ", ".join(f"{o.colour} {o.name}" for o in scene.objects)
