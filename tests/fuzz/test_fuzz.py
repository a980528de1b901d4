"""Thousands of wrong pictures, configurations, lists, command lines and requests: a right result or one sentence.

``make test`` runs a few of each, always the same; ``make fuzz`` some thousands, others every time (``PTPRUNE_FUZZ``).
Mutations follow from a seed, which Hypothesis prints with a failure; add what it finds to ``tests/security``.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ptprune.bench.items.folder import folder_items, visual_in
from ptprune.cli import main
from ptprune.errors import UserError
from ptprune.pictures import MAX_ASPECT, open_picture
from ptprune.templates import RENDERER
from ptprune.text import printable
from ptprune.tiny import CHECKPOINT
from ptprune.vllm.settings import num_kept, pruner_of, requested
from ptprune.vllm.turn import answer_start, texts_around
from tests.fuzz.mutations import VALUES, WORDS, of_bytes, of_json
from tests.fuzz.watch import MEMORY, Broken, check_command, check_line, watched

SHARE = float(os.environ.get("PTPRUNE_FUZZ", "0"))  # 1: ten minutes
SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
SEEDS = st.integers(0, 2**48)


def cases(few: int, many: int) -> Any:
    """So many cases in ``make test``, and in ``make fuzz``."""
    return settings(
        max_examples=max(1, round(many * SHARE)) if SHARE else few,
        derandomize=not SHARE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: Any) -> Any:
    """No network; the libraries have written what they write once; the templates' process runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import huggingface_hub.constants

        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        RENDERER.start()
        with pytest.raises(SystemExit):
            main(["run", str(SCENE), "-q", "which digit is blue?", "--max-new-tokens", "1"])
        with pytest.raises(SystemExit):  # matplotlib's fonts
            main(["items", "scenes", str(tmp_path_factory.mktemp("items") / "new"), "--count", "1"])
        warnings.simplefilter("ignore")
        yield


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures() -> list[bytes]:
    """One valid picture of every format and of most modes."""
    chance = np.random.default_rng(0)
    pixels = Image.fromarray(chance.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    alpha = pixels.copy()
    alpha.putalpha(pixels.convert("L"))
    deep = Image.fromarray(chance.integers(0, 4096, (24, 32)).astype(np.uint16))
    frames = {"save_all": True, "append_images": [pixels.rotate(90)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (pixels, "PNG", {}),
        (alpha, "PNG", {}),
        (deep, "PNG", {}),
        (pixels.quantize(8), "PNG", {"transparency": 0}),
        (pixels, "PNG", frames),
        (pixels, "JPEG", {"exif": exif}),
        (pixels, "JPEG", {"progressive": True}),
        (pixels.convert("CMYK"), "JPEG", {}),
        (pixels, "GIF", frames),
        (pixels, "BMP", {}),
        (pixels, "PPM", {}),
        (deep, "PPM", {}),
        (deep, "TIFF", {}),
        (pixels, "TIFF", {"compression": "tiff_lzw"}),
        (pixels, "TIFF", frames),
        (Image.fromarray(np.arange(768, dtype=np.int32).reshape(24, 32)), "TIFF", {}),
        (pixels, "WEBP", {}),
        (alpha, "WEBP", frames),
        (pixels, "JPEG2000", {}),
        (pixels, "AVIF", {}),
    ]
    files = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind, **options)
        except (OSError, KeyError):  # a format that this Pillow cannot write
            continue
        files.append(buffer.getvalue())
    return files


PICTURES = _pictures()


@cases(few=300, many=8000)
@given(st.sampled_from(PICTURES), SEEDS)
def test_pictures(tmp_path: Path, whole: bytes, seed: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(of_bytes(whole, random.Random(seed)))
    said: list[str] = []
    with watched(tmp_path):
        try:
            shown = open_picture(path, say=said.append)
        except UserError as error:
            check_line(str(error))
            return
    assert shown.mode == "RGB"
    assert max(shown.size) <= MAX_ASPECT * min(shown.size)
    assert np.asarray(shown).shape == (shown.height, shown.width, 3)


# --- configurations -------------------------------------------------------------------------------------------------

FILES = [
    "config.json",
    "config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "tokenizer.json",
]


@cases(few=40, many=1500)
@given(st.sampled_from(FILES), SEEDS)
def test_configurations(tmp_path_factory: Any, capsys: Any, name: str, seed: int) -> None:
    chance, folder = random.Random(seed), tmp_path_factory.mktemp("model")
    for file in CHECKPOINT.iterdir():
        os.symlink(file, folder / file.name)
    path, whole = folder / name, (CHECKPOINT / name).read_bytes()
    path.unlink()
    if name.endswith(".json") and chance.random() < 0.85:
        path.write_text(json.dumps(of_json(json.loads(whole), chance)))
    elif name == "model.safetensors":
        path.write_bytes(of_bytes(whole[: 1 << 14], chance) + whole[1 << 14 :])
    else:
        path.write_bytes(of_bytes(whole, chance))
    arguments = ["run", str(SCENE), "-q", "which digit is blue?", "--max-new-tokens", "2", "--model", str(folder)]
    try:
        with watched(folder):
            check_command(lambda: main(arguments), capsys)
    finally:
        shutil.rmtree(folder)


# --- lists of items -------------------------------------------------------------------------------------------------

ENTRY = {"picture": "a.png", "question": "which digit is blue?", "answer": "5", "kind": "digit"}
NAMES = st.sampled_from(["a.png", "./a.png", "../a.png", "/etc/passwd", "link", "items.jsonl", "", "a\0", "x" * 300])
TEXTS = st.one_of(st.text(), st.sampled_from(WORDS))
LINES = st.one_of(
    st.fixed_dictionaries({"picture": NAMES, "question": TEXTS, "answer": TEXTS}).map(json.dumps),
    SEEDS.map(lambda seed: json.dumps(of_json([ENTRY], random.Random(seed))[0:1] or None)),
    SEEDS.map(lambda seed: json.dumps(of_json(ENTRY, random.Random(seed)))),
    st.sampled_from(["{", "[" * 5000, '{"a":' * 5000, "null", " ", json.dumps(ENTRY), '{"picture": "\\ud800"}']),
    st.text(),
)


@cases(few=200, many=3000)
@given(st.lists(LINES, max_size=4), st.booleans(), SEEDS)
def test_lists_of_items(tmp_path: Path, lines: list[str], broken: bool, seed: int) -> None:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.png").exists():
        Image.new("RGB", (40, 40)).save(folder / "a.png")
        (folder / "link").symlink_to(SCENE)
        (tmp_path / "a.png").write_bytes(SCENE.read_bytes())
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    (folder / "items.jsonl").write_bytes(of_bytes(data, random.Random(seed)) if broken else data)
    with watched(folder):
        try:
            found = folder_items(folder)
        except UserError as error:
            check_line(printable(" ".join(str(error).split())))
            return
        for item in found:
            assert isinstance(item.picture, Path)
            assert os.path.realpath(item.picture) == os.path.realpath(folder / "a.png")
            assert item.question.strip()
            assert item.answer.strip()
            visual_in(folder)({"picture": item.picture.name})


# --- command lines --------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.sampled_from(["", "-1", "0", "1", "2", "0.5", "1e9", "nan", "inf", "-inf", "1" * 50, "true", "ptp", "random"]),
    st.sampled_from(
        ["\x1b[2J", "\udcff", "../..", "/", "a/b", ".", "~", "~nobody/x", "--", "-", "=", "a=b", "x" * 5000]
    ),
    st.sampled_from(["alpha=0.5", "alpha=nan", "window=(1,", "coverage=" + "[" * 99, "layer=1e3", "keep-ratio=1"]),
    st.text(max_size=20).filter(lambda text: "\0" not in text),
)
OPTIONS = {
    "run": "--model --device --dtype --max-new-tokens --max-tiles --max-pixels --together --method --keep-ratio "
    "--layer --alpha --temperature --thumbnail --window --positions --compare --overlay --json -q --question",
    "cost": "--model --tiles --text-tokens --keep-ratio --layer --bytes-per-value --json",
    "items": "--count",
    "models": "--json",
    "methods": "--json",
    "verify": "--model --device --dtype --attention --picture --max-pixels --keep-ratio --json",
    "eval": "--suite --benchmarks --limit --keep-ratio --methods --set --model --out --expect",
    "bench accuracy": "--methods --ratios --set --layer --ablate --encodings --scenes --background --split --questions "
    "--items --items-outside --limit "
    "--model --device --dtype --batch --max-new-tokens --out --plot --json",
    "bench speed": "--shape --model --layers --vision-layers --tiles --text-tokens --batch --methods --keep-ratio "
    "--layer --rounds --new-tokens --dtype --attention --out --json",
    "bench overhead": "--shape --model --layers --tiles --text-tokens --batch --methods --keep-ratio "
    "--layer --attention",
    "bench report": "--out",
}
FLAGS = {"--together", "--compare", "--json", "--ablate", "--encodings", "--items-outside"}
STARTS = {
    "run": ["SCENE", "-q", "which digit is blue?", "--max-new-tokens", "1"],
    "cost": ["--model", "internvl3-1b"],
    "items": ["scenes", "new", "--count", "1"],
    "bench report": ["RESULTS", "--out", "page.md"],
}
MEASURE = {"verify", "bench accuracy", "bench speed", "bench overhead"}


@st.composite
def command_lines(draw: Any) -> list[str]:
    command = draw(st.sampled_from([*OPTIONS, "run", "run", "cost"]))
    words = [*command.split()]
    if draw(st.integers(0, 9)):
        words += STARTS.get(command, [])
    for option in draw(st.lists(st.sampled_from(OPTIONS[command].split()), max_size=3)):
        words += [option] if option in FLAGS else [option, draw(HOSTILE)]
    if not draw(st.integers(0, 4)):
        words.insert(draw(st.integers(0, len(words))), draw(HOSTILE))
    if command in MEASURE:  # what would run for minutes stops at the device; the last one counts
        words += ["--device", "abacus"]
    return words


@cases(few=60, many=2000)
@given(command_lines())
def test_command_lines(tmp_path_factory: Any, capsys: Any, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("cwd")
    results = Path(__file__).parents[2] / "benchmarks" / "published.json"
    known = {"SCENE": str(SCENE), "RESULTS": str(results)}
    here = Path.cwd()
    os.chdir(folder)
    try:
        with watched(folder):
            if check_command(lambda: main([known.get(word, word) for word in words]), capsys) == 0:
                assert SCENE.stat().st_size > 1000
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


# --- requests to a server -------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from(VALUES)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
SETTINGS = st.dictionaries(
    st.sampled_from(["keep_ratio", "keep_tokens", "alpha", "instruction", "region", "temperature", "layer", "x"]),
    st.one_of(JSON, st.floats(0, 1), st.sampled_from(["none", "attention", "embedding"]), st.integers(1, 500)),
    max_size=3,
)
PIECES = ["{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{% if x %}", "{% endif %}"]
PIECES += [
    "{{ 'a' * 99 }}",
    "{{ x.y }}",
    "<|user|>",
    "{% set x = 1 %}",
    "{{ raise_exception('no') }}",
    "{{ ''|foo }}",
    "{",
]


class Tokenizer:
    """What a request needs of one."""

    special_tokens_map: dict[str, str] = {}

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) % 50 for letter in text]


@cases(few=200, many=4000)
@given(
    server=st.one_of(JSON, SETTINGS),
    request=st.one_of(JSON, SETTINGS),
    tokens=st.integers(1, 5000),
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    answer=st.lists(st.integers(0, 5), max_size=3),
    template=st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
)
def test_requests_to_the_plugin(
    tmp_path: Path, server: Any, request: Any, tokens: int, prompt: list[int], answer: list[int], template: str
) -> None:
    with watched(tmp_path):
        try:
            pruner = pruner_of(server)
        except ValueError as error:
            check_line(str(error), "ptprune: ")
            pruner = pruner_of({"keep_ratio": 0.5})
        try:
            ratio = requested(pruner, request).ratio
        except ValueError as error:
            check_line(str(error), "ptprune: ")
            ratio = None
        assert 1 <= num_kept(pruner, ratio, tokens, tokens) <= pruner.num_kept(tokens) <= tokens
        spans = [range(i, i + 1) for i, token in enumerate(prompt) if token == 0]
        texts = texts_around(prompt, spans, spans, answer)
        assert len(texts) == len(spans)
        for text in texts:
            assert 0 <= text.num_instruction <= len(text.after)
        assert isinstance(answer_start(Tokenizer(template)), list)


def test_the_watch_sees(tmp_path: Path) -> None:
    """A watch that sees nothing proves nothing."""

    def write_outside() -> None:
        (tmp_path / "x").write_text("")

    def run_something() -> None:
        os.system("true")

    def run_a_file() -> None:
        exec(compile("1", str(tmp_path / "inside" / "a.py"), "exec"))

    def take_much() -> None:
        assert len(bytearray(MEMORY + (1 << 28)).replace(b"x", b"y")) > MEMORY  # a copy: all of it is touched

    (tmp_path / "inside").mkdir()
    take_much()
    with watched(tmp_path / "inside"):
        pass  # what was taken before does not count
    for act in (write_outside, run_something, run_a_file, take_much):
        with pytest.raises(Broken), watched(tmp_path / "inside"):
            act()
    with watched(tmp_path):
        write_outside()
    with pytest.raises(Broken):
        check_line("two\nlines")
    with pytest.raises(Broken):
        check_line("\x1b[2J")
