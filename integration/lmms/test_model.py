"""The model that lmms-eval drives: batches, pictures anywhere in a prompt, every family, options, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image
from tests.cli.families import save
from tests.zoo import ZOO

from integration.lmms.conftest import start
from ptprune import PyramidTokenPruning
from ptprune.asking.answer import ask as ask_alone
from ptprune.asking.chat import make_prompt
from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.errors import UserError
from ptprune.lmms.model import LmmsModel
from ptprune.lmms.respondent import PADDING, Respondent, Tally, cut, generation_options
from ptprune.tiny.scenes import generate_scene

SHORT = {"max_new_tokens": 4, "until": ["\n\n"]}
Parts = list[dict[str, Any]]


def requests(documents: Sequence[Parts], options: dict[str, Any], **metadata: Any) -> list[Instance]:
    """As lmms-eval makes them of a task whose documents are the parts of one user turn."""
    return [
        Instance(
            request_type="generate_until",
            arguments=("", lambda parts: [{"role": "user", "content": parts}], dict(options), number, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": number, "repeats": 1, **metadata},
        )
        for number in range(len(documents))
    ]


def ask(model: Respondent, documents: Sequence[Parts], options: dict[str, Any]) -> list[str]:
    model.task_dict = {"task": {"test": documents}}
    return model.generate_until(requests(documents, options))


def loaded_model(batch: int) -> LoadedModel:
    return LoadedModel.load(Checkpoint.find(None), torch.device("cpu"), "auto", batch=batch)


def picture(picture: Image.Image) -> dict[str, Any]:
    return {"type": "image", "url": picture}


def text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Parts]:
    """Pictures before, behind and between texts, several, none, and one that is named by its file."""
    scenes = [generate_scene("dev", seed).image for seed in range(4)]
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    scenes[3].save(path)
    return [
        [picture(scenes[0]), text("how many digits are there?")],
        [text("how many shapes are there?"), picture(scenes[1])],
        [text("how many digits are there?")],
        [picture(scenes[1]), text("how many"), picture(scenes[2]), text("letters are there?")],
        [picture(path.as_posix()), text("how many letters are there?")],  # type: ignore[arg-type]
    ]


def stock_answers(documents: Sequence[Parts]) -> list[str]:
    """Answers of transformers alone, one prompt at a time."""
    loaded = loaded_model(1)
    given = []
    for parts in documents:
        content = [{"type": "image", "image": part["url"]} if "url" in part else part for part in parts]
        inputs = loaded.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = loaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        given.append(loaded.processor.tokenizer.decode(new, skip_special_tokens=True))
    return given


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_prompt_in_any_batch(documents: list[Parts], batch: int) -> None:
    loaded = loaded_model(batch)
    model = Respondent(loaded, None)
    assert ask(model, documents, SHORT) == stock_answers(documents)
    assert model.tally.questions == 5
    assert model.tally.kept_tokens == model.tally.visual_tokens > 0
    pruned = Respondent(loaded, PyramidTokenPruning(keep_ratio=0.5))
    ask(pruned, documents, SHORT)
    assert pruned.tally.visual_tokens == model.tally.visual_tokens
    assert pruned.tally.kept_tokens == pytest.approx(model.tally.visual_tokens / 2, abs=3)
    assert pruned.tally.seconds > 0


@pytest.mark.parametrize("name", list(ZOO))
def test_every_family(name: str, tmp_path: Path) -> None:
    """In a batch through lmms-eval as one by one without it, pruned and not."""
    directory = save(ZOO[name], tmp_path)
    one, other = noise(90, 60), noise(36, 100)
    documents = [
        [picture(one), text("w9 w10 w11")],
        [picture(one), picture(other), text("w12")],
        [text("w13 w14")],
        [picture(other), text("w15 w16")],
    ]
    for method, pruner in (("none", None), ("ptp", PyramidTokenPruning(keep_ratio=0.5))):
        model = LmmsModel(str(directory), method=method, batch_size="4", device="cpu")
        loaded = model.loaded
        assert loaded is not None
        expected = []
        for parts in documents:
            *pictures, question = parts
            inputs = make_prompt(
                loaded.model, loaded.processor, [part["url"] for part in pictures], question["text"], {}
            )
            expected.append(ask_alone(loaded.model, loaded.processor, inputs, pruner, 4).text)
        assert [answer.strip() for answer in ask(model, documents, SHORT)] == expected


def test_loaded_as_told() -> None:
    model = LmmsModel(None, method="fastv", keep_ratio=0.25, dtype="bfloat16", attn_implementation="eager", layer=1)
    loaded = model.loaded
    assert loaded is not None
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.config.text_config._attn_implementation == "eager"
    assert loaded.model.config.vision_config._attn_implementation == "eager"
    assert model.device == torch.device("cpu")
    pruner = model.pruner
    assert pruner is not None
    assert (type(pruner).__name__, pruner.keep_ratio, pruner.layer) == ("FastV", 0.25, 1)
    tiles = LmmsModel(None, max_tiles=2)
    ask(tiles, [[picture(noise(256, 128)), text("?")]], SHORT)
    assert tiles.tally.visual_tokens == 3 * 16  # two tiles and the thumbnail
    model.clean()
    assert model.loaded is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"keep_ratio": 2}, "ptprune: keep_ratio must be over 0 and at most 1, got 2"),
        ({"method": "best"}, "ptprune: method best: unknown; give one of ptp, "),
        ({"colour": "red"}, "ptprune: colour: method ptp has no such setting"),
        ({"method": "none", "keep_ratio": 0.5}, "ptprune: keep_ratio: the unpruned model (method none) has no such"),
        ({"pretrained": "/nowhere"}, "ptprune: pretrained /nowhere: no such directory"),
        ({"batch_size": "auto"}, "ptprune: --batch_size auto: give a whole number"),
        ({"max_tiles": 0.5}, "ptprune: max_tiles 0.5: give a whole number"),
        ({"dtype": "int3"}, "ptprune: dtype int3: unknown"),
        ({"device": "abacus"}, "ptprune: device abacus: not available here"),
        ({"attn_implementation": "closed"}, "ptprune: attn_implementation closed"),
        ({"layer": 6}, "6 language model layers"),
    ],
    ids=str,
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SystemExit) as left:
        LmmsModel(**arguments)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert says in told
    assert told.count("\n") == 1


def test_questions_that_cannot_be_asked() -> None:
    model = Respondent(loaded_model(2), None)
    with pytest.raises(UserError, match="task, question 0: '<IMG_CONTEXT>' stands for a picture"):
        ask(model, [[text("what is <IMG_CONTEXT>?")]], SHORT)
    with pytest.raises(UserError, match=r"task, question 0: max_new_tokens 5000"):
        ask(model, [[text("what?")]], {"max_new_tokens": 5000})
    with pytest.raises(UserError, match="shows video"):
        ask(model, [[{"type": "video", "url": "a.mp4"}, text("what?")]], SHORT)
    with pytest.raises(ValueError, match="nonsense"):  # generate() refuses what it does not know
        ask(model, [[text("what?")]], {"nonsense": 1})
    for other in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            other([])


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ("nonsense=1", 1, "nonsense"),
        ("max_new_tokens=5000", 2, "ptprune_scenes, question 0: max_new_tokens 5000"),
    ],
)
def test_errors_while_answering_fail_the_run(items: Path, tmp_path: Path, given: str, code: int, says: str) -> None:
    """lmms-eval's own models answer "" then, and its command leaves with 0."""
    result = start(
        *("lmms_eval", "--model", "ptprune", "--tasks", "ptprune_scenes", "--include_path", items, "--limit", 2),
        *("--gen_kwargs", given, "--output_path", tmp_path),
    )
    assert result.code == code
    assert says in result.err
    assert list(tmp_path.rglob("*_results.json")) == []


def test_requests_that_only_pad_are_not_answered() -> None:
    model = Respondent(loaded_model(2), None)
    parts = [text("how many digits are there?")]
    model.task_dict = {"task": {"test": [parts]}}
    real, padding = requests([parts], SHORT), requests([parts], SHORT, **{PADDING: True})
    [answer] = model.generate_until(real)
    assert answer
    model.tally = Tally()
    assert model.generate_until([*padding, *real, *padding]) == ["", answer, ""]
    assert model.tally.questions == 1


def test_generation_options() -> None:
    assert generation_options({}) == ({"max_new_tokens": 1024, "num_beams": 1, "do_sample": False}, [])
    given = {
        "max_new_tokens": 16,
        "temperature": 0,
        "top_p": 1.0,
        "num_beams": 2,
        "do_sample": False,
        "until": ["\n\n"],
    }
    assert generation_options(given) == ({"max_new_tokens": 16, "num_beams": 2, "do_sample": False}, [])
    options, stops = generation_options({"temperature": 0.2, "until": "END", "image_aspect_ratio": "original"})
    assert options == {"max_new_tokens": 1024, "num_beams": 1, "do_sample": True, "temperature": 0.2, "top_p": 1.0}
    assert stops == ["END"]
    for greedy in ({"temperature": 0.2, "do_sample": False}, {"temperature": 0, "do_sample": True}):
        assert not generation_options(greedy)[0]["do_sample"]
    assert generation_options({"temperature": 0.5, "top_p": None, "top_k": 3, "until": None})[0]["top_k"] == 3


def test_answers_end_at_the_first_stop_string(documents: list[Parts]) -> None:
    assert cut("one two three", []) == "one two three"
    assert cut("one two three", ["three", "two", "four"]) == "one "
    model = Respondent(loaded_model(5), None)
    whole = ask(model, documents, SHORT)
    stop = whole[0].strip()[-1]
    assert ask(model, documents, {**SHORT, "until": ["\n\n", stop]}) == [answer.split(stop)[0] for answer in whole]
