"""The named worlds: the same every time, splits that share nothing, answers that an independent reading finds."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from tests.tiny.test_scenes import answer_from_objects

from ptprune.bench.items import digest
from ptprune.bench.items.scenes import scene_items
from ptprune.tiny import world
from ptprune.tiny.backgrounds import BACKGROUNDS
from ptprune.tiny.document_questions import DOCUMENT_KINDS, all_document_questions, ask_document
from ptprune.tiny.documents import LINE, Document, generate_document, page_grids
from ptprune.tiny.questions import ask
from ptprune.tiny.scenes import generate_scene
from ptprune.tiny.worlds import WORLDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages() -> list[Document]:
    return [generate_document(split, seed) for split in world.SPLITS for seed in range(10)]


@pytest.mark.parametrize("name", WORLDS)
def test_same_split_and_seed_give_the_same_example(name: str) -> None:
    for seed in (4, 5):
        one, two = (WORLDS[name].example("dev", seed) for _ in range(2))
        assert one == two
        assert one.image.tobytes() == two.image.tobytes()
        others = [WORLDS[name].example("test", seed), WORLDS[name].example("dev", seed + 2)]
        assert all(one.image.tobytes() != other.image.tobytes() for other in others)


def test_usual_scenes_are_those_of_the_recorded_results() -> None:
    if f"pillow=={version('pillow')};" not in (ROOT / "constraints.txt").read_text():
        pytest.skip("the results were recorded with the pinned version of the library that draws")
    recorded = json.loads((ROOT / "benchmarks/results/accuracy-usual.json").read_text())
    items = scene_items(recorded["split"], recorded["items"])
    assert digest(items) == recorded["runs"][0]["identity"]["items"]


def test_fills() -> None:
    def full(name: str) -> np.ndarray:
        pictures = [WORLDS[name].draw("dev", seed) for seed in range(30)]
        return np.array([len({(o.column, o.row) for o in scene.objects}) / scene.tiles for scene in pictures])

    assert full("crowded").min() >= 0.88
    assert full("sparse").max() <= 0.3
    assert 0.3 < full("usual").mean() < 0.7
    assert {WORLDS["crowded"].draw("dev", seed).tiles for seed in range(30)} <= {9, 10, 12}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds(name: str) -> None:
    scene = generate_scene("dev", 3, background=name)
    behind = np.asarray(scene.image, float)[scene.owner == -1]
    steps = np.abs(np.diff(np.asarray(scene.image, float), axis=1))[(scene.owner[:, 1:] == -1)].mean()
    assert behind.mean() < 150  # dark, whatever it is
    if name == "noise":
        assert steps > 15
    if name == "plain":
        assert steps < 8
    assert {"plain": "plain", "noise": "noise"}.get(name, scene.background) == scene.background
    if name == "photograph":
        assert scene.background in world.PHOTOGRAPHS["dev"]


def test_backgrounds_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="photograph"):
        WORLDS["usual"].example("dev", 0, "holiday")
    with pytest.raises(ValueError, match="paper"):
        WORLDS["documents"].example("dev", 0, "plain")


def test_splits_share_no_print() -> None:
    for one in world.SPLITS:
        assert set(world.FONTS[one]) <= set(world.PRINT[one])
        for two in world.SPLITS:
            assert one == two or not set(world.PRINT[one]) & set(world.PRINT[two])


def test_words_of_pages_differ_in_two_letters() -> None:
    others = {*world.COLOURS, *world.SHAPES, *world.KINDS}
    assert len(set(world.KEYS)) == len(world.KEYS) >= 48
    assert not others & set(world.KEYS)
    for one in world.KEYS:
        assert sum(sum(a != b for a, b in zip(one, two, strict=True)) < 2 for two in world.KEYS) == 1


def test_print_is_where_the_entries_say(pages: list[Document]) -> None:
    for page in pages:
        assert page.image.size == (page.columns * world.TILE, page.rows * world.TILE)
        assert 6 <= page.tiles <= 12
        grey = np.asarray(page.image.convert("L"), float)
        paper = np.median(grey)
        inked = []
        for e in page.entries:
            for left, top, right, bottom in (e.key_box, e.value_box):
                assert e.column * world.TILE <= left < right <= (e.column + 1) * world.TILE
                line = e.row * world.TILE + e.line * LINE
                assert line - 1 <= top < bottom <= line + LINE + 4
                inked.append(np.abs(grey[top:bottom, left:right] - paper).max())
        assert min(inked) > 50
        lines = {(e.column, e.row, e.line) for e in page.entries}
        assert len(lines) == len(page.entries)
        empty = [
            (column, row, line)
            for column in range(page.columns)
            for row in range(page.rows)
            for line in range(4)
            if (column, row, line) not in lines
        ]
        for column, row, line in empty:  # tables are filled from the top
            assert (column, row, line + 1) not in lines


def test_the_thumbnail_cannot_show_print(pages: list[Document]) -> None:
    for page in pages:
        boxes = [box for e in page.entries for box in (e.key_box, e.value_box)]
        tall = max(bottom - top for _, top, _, bottom in boxes) * world.TILE / page.image.height
        letter = max((e.key_box[2] - e.key_box[0]) / 3 for e in page.entries) * world.TILE / page.image.width
        assert tall < 5.5  # with what hangs below the line
        assert letter < 6
    assert all(rows >= 3 and columns >= 2 for columns, rows in page_grids(6, 12))


def read_page(page: Document, question: str) -> set[str]:
    """All answers that the print allows, read off the question's words: independent of how questions are made."""
    tables: dict[tuple[int, int], list[str]] = {}
    pairs = []
    for e in sorted(page.entries, key=lambda e: e.key_box[3]):
        middle = (e.key_box[1] + e.key_box[3]) // 2
        tables.setdefault((e.key_box[0] // world.TILE, middle // world.TILE), []).append(e.key)
        pairs.append((e.key, e.value))
    if match := re.fullmatch(r"what is the value of (\w+)\?", question):
        return {value for key, value in pairs if key == match[1]}
    if match := re.fullmatch(r"which key has (\d+)\?", question):
        return {key for key, value in pairs if value == match[1]}
    match = re.fullmatch(r"what stands below (\w+)\?", question)
    assert match, question
    return {
        below for keys in tables.values() for above, below in zip(keys, keys[1:], strict=False) if above == match[1]
    }


def test_every_answer_is_the_only_one_the_page_allows(pages: list[Document]) -> None:
    for page in pages:
        found = all_document_questions(page)
        assert set(found) == set(DOCUMENT_KINDS)
        for questions in found.values():
            for question in questions:
                assert read_page(page, question.text) == {question.answer}, question


def test_dialogues_ask_two_things_about_one_picture() -> None:
    for seed in range(12):
        one = WORLDS["dialogue"].example("dev", seed)
        [first] = one.before
        assert first != one.question
        if seed % 2:
            page = generate_document("dev", seed)
            assert read_page(page, one.question) == {one.answer}
            assert [first, one.question] == [question.text for question in ask_document(page, 2)]
        else:
            scene = generate_scene("dev", seed)
            assert answer_from_objects(scene, one.question) == {one.answer}
            assert [first, one.question] == [question.text for question in ask(scene, 2)]


def test_captions_list_every_object_once() -> None:
    for seed in range(12):
        scene = generate_scene("dev", seed)
        listed = WORLDS["captions"].example("dev", seed).answer.split(", ")
        assert sorted(listed) == sorted(f"{o.colour} {o.name}" for o in scene.objects)
