"""The scene generator: the same scene every time, splits that share nothing, answers that the objects really give."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from ptprune.tiny import glyphs, world
from ptprune.tiny.questions import QUESTION_KINDS, all_questions, ask
from ptprune.tiny.scenes import Scene, generate_scene, grids


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [generate_scene(split, seed) for split in world.SPLITS for seed in range(12)]


def test_same_split_and_seed_give_the_same_scene() -> None:
    for split in world.SPLITS:
        one, two = generate_scene(split, 5), generate_scene(split, 5)
        assert one == two
        np.testing.assert_array_equal(np.asarray(one.image), np.asarray(two.image))
        assert ask(one, 6) == ask(two, 6)


def test_other_split_or_seed_gives_another_scene() -> None:
    pictures = {generate_scene(split, seed).image.tobytes() for split in world.SPLITS for seed in range(4)}
    assert len(pictures) == 12


def test_splits_share_no_handwriting_font_or_photograph() -> None:
    samples = {
        split: {s for digit in world.DIGITS for s in glyphs.digit_samples(split, digit)} for split in world.SPLITS
    }
    for one in world.SPLITS:
        assert samples[one] == set(range(*world.DIGIT_RANGE[one]))
        for two in world.SPLITS:
            if one != two:
                assert not samples[one] & samples[two]
                for table in (world.FONTS, world.PHOTOGRAPHS, world.TEXTURES):
                    assert not set(table[one]) & set(table[two])


def test_digits_show_the_handwriting_they_name(scenes: list[Scene]) -> None:
    _, target = glyphs._handwriting()
    for scene in scenes:
        for o in scene.objects:
            assert (o.sample is not None) == (o.kind == "digit")
            if o.sample is not None:
                assert str(target[o.sample]) == o.name
                start, stop = world.DIGIT_RANGE[scene.split]
                assert start <= o.sample < stop


def test_size_is_the_grid_and_objects_stay_in_their_tile(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.size == (scene.columns * world.TILE, scene.rows * world.TILE)
        assert 6 <= scene.tiles <= 12
        for o in scene.objects:
            left, top, right, bottom = o.box
            assert o.column * world.TILE <= left < right <= (o.column + 1) * world.TILE
            assert o.row * world.TILE <= top < bottom <= (o.row + 1) * world.TILE


def test_tiles_hold_one_thing_or_a_letter_beside_a_shape(scenes: list[Scene]) -> None:
    empty = 0
    for scene in scenes:
        by_tile: dict[tuple[int, int], list] = {}
        for o in scene.objects:
            by_tile.setdefault((o.column, o.row), []).append(o)
        empty += scene.tiles - len(by_tile)
        for things in by_tile.values():
            assert sorted(o.kind for o in things) in (["digit"], ["letter"], ["letter", "shape"], ["shape"])
            for o in things:
                assert (o.beside is None) == (len(things) == 1)
                if o.beside is not None:
                    assert scene.objects[o.beside] in things
                    assert scene.objects[o.beside] is not o
    assert empty > 2 * len(scenes)  # empty tiles are what region budgets are about


def test_objects_have_their_colour(scenes: list[Scene]) -> None:
    import colorsys

    for scene in scenes:
        pixels = np.asarray(scene.image, dtype=float) / 255
        for index, o in enumerate(scene.objects):
            hue, saturation, _ = colorsys.rgb_to_hsv(*np.median(pixels[scene.owner == index], axis=0))
            true_hue, true_saturation, _ = world.COLOURS[o.colour]
            assert abs(saturation - true_saturation) < 0.25
            if o.colour != "white":
                assert abs((hue * 360 - true_hue + 180) % 360 - 180) < 12


def answer_from_objects(scene: Scene, text: str) -> set[str]:
    """All answers that the objects allow, read off the question's words: independent of how questions are made."""
    things = [(o.kind, o.name, o.colour) for o in scene.objects]
    if match := re.fullmatch(r"which (\w+) is (\w+)\?", text):
        return {name for kind, name, colour in things if (kind, colour) == match.groups()}
    if match := re.fullmatch(r"what colour is the (\w+)\?", text):
        return {colour for _, name, colour in things if name == match[1]}
    if match := re.fullmatch(r"how many (\w+)s are there\?", text):
        return {str(sum(kind == match[1] for kind, _, _ in things))}
    if match := re.fullmatch(r"is there a (\w+) (\w+)\?", text):
        return {"yes" if ("shape", match[2], match[1]) in things else "no"}
    if match := re.fullmatch(r"which letter is next to the (\w+)\?", text):
        stars = [o for o in scene.objects if o.name == match[1]]
        return {
            o.name
            for star in stars
            for o in scene.objects
            if o.kind == "letter" and (o.column, o.row) == (star.column, star.row)
        }
    raise AssertionError(f"unknown question {text!r}")


def test_every_answer_is_the_only_one_the_objects_allow(scenes: list[Scene]) -> None:
    for scene in scenes:
        for questions in all_questions(scene).values():
            for question in questions:
                assert answer_from_objects(scene, question.text) == {question.answer}, question


def test_all_kinds_are_asked_and_yes_is_as_common_as_no() -> None:
    asked = [q for seed in range(150) for q in ask(generate_scene("dev", seed), 8)]
    assert {q.kind for q in asked} == set(QUESTION_KINDS)
    yes = [q.answer == "yes" for q in asked if q.kind == "exists"]
    assert 0.3 < np.mean(yes) < 0.7


def test_asking_twice_the_same_is_avoided() -> None:
    for seed in range(5):
        questions = ask(generate_scene("dev", seed), 50)
        assert len(questions) == len(set(questions))


def test_grids_are_those_the_processor_picks() -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    for columns, rows in grids(1, 12):
        size = (rows * world.TILE, columns * world.TILE)
        assert get_optimal_tiled_canvas(size, (world.TILE, world.TILE), 1, 12) == (columns, rows)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, dev, test"):
        generate_scene("validation", 0)


@pytest.mark.parametrize(("library", "call"), [("sklearn", "_handwriting"), ("matplotlib", "font")])
def test_missing_libraries_name_the_extra(monkeypatch: pytest.MonkeyPatch, library: str, call: str) -> None:
    for name in [n for n in sys.modules if n == library or n.startswith(library + ".")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    function = getattr(glyphs, call).__wrapped__
    with pytest.raises(ImportError, match=r"ptprune\[scenes\]"):
        function() if call == "_handwriting" else function("DejaVuSans", 20)
