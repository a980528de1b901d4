"""Worlds in the accuracy benchmark: lists scored in part, second questions about a picture pruned for the first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptprune import PyramidTokenPruning
from ptprune.asking.chat import chat_inputs
from ptprune.bench import accuracy, examinee, items, statistics
from ptprune.bench.candidates import Candidate
from ptprune.bench.items.folder import folder_items, score, write
from ptprune.bench.items.scenes import scene_items
from ptprune.checkpoints import Checkpoint
from ptprune.cli.console import quiet_libraries
from ptprune.errors import UserError
from tests.command import Command, command, refused

for library in ("sklearn", "skimage", "matplotlib"):
    pytest.importorskip(library)

QUICK = ("--methods", "ptp", "--ratios", ".25", "--split", "dev")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Command:
    return command(capsys, "bench", "accuracy")


@pytest.fixture(scope="module")
def subject() -> examinee.Examinee:
    quiet_libraries()
    checkpoint = Checkpoint.find(None)
    return examinee.Examinee(checkpoint.model(torch.device("cpu"), "auto"), checkpoint.processor(), batch=4)


@pytest.mark.parametrize(
    ("given", "expected", "f1"),
    [
        ("red 7, blue star", "red 7, blue star", 1),
        (" blue star,red 7 ", "red 7, blue star", 1),
        ("red 7", "red 7, blue star", 2 / 3),
        ("red 7, red 7", "red 7, blue star", 1 / 2),
        ("red 7, red 7", "red 7, red 7", 1),
        ("7, star", "red 7, blue star", 0),
        ("", "red 7", 0),
        ("", "", 1),
    ],
)
def test_f1_of_lists(given: str, expected: str, f1: float) -> None:
    assert items.mark(given, expected, listing=True) == pytest.approx(f1)
    assert items.mark(given, expected) == float(given.strip() == expected)


def test_marks_count_instead_of_right() -> None:
    one = Candidate("ptp", 0.5)
    row = accuracy.row_of(one, "100", 5.0, ["caption"] * 3, parts=[1.0, 0.5, 0.25])
    assert row.accuracy == pytest.approx(58.33)
    assert row.by_kind == {"caption": row.accuracy}
    whole = accuracy.row_of(one, "100", 5.0, ["caption"] * 3)
    assert whole.accuracy == pytest.approx(33.33)
    np.testing.assert_array_equal(statistics.marks_of(row), [1, 0.5, 0.25])
    gain = statistics.difference(statistics.marks_of(row), statistics.marks_of(whole))
    assert gain.difference == pytest.approx(25)


def test_items_of_other_worlds_are_others() -> None:
    plain = scene_items("dev", 2)
    assert plain == scene_items("dev", 2, world="usual")
    names = ("sparse", "crowded", "documents", "captions", "dialogue")
    digests = {items.digest(scene_items("dev", 2, world=name)) for name in names}
    digests |= {items.digest(scene_items("dev", 2, background=name)) for name in ("plain", "noise", "photograph")}
    assert len(digests | {items.digest(plain)}) == 9
    for change in ({"before": ("?",)}, {"listing": True}):
        assert items.digest([replace(plain[0], **change)]) != items.digest(plain[:1])  # type: ignore[arg-type]


def test_lists_survive_a_folder(tmp_path: Path) -> None:
    written = write("captions", tmp_path, 2)
    assert written == 2
    drawn, read = scene_items("test", 2, world="captions"), folder_items(tmp_path)
    assert [(i.question, i.answer, i.listing) for i in read] == [(i.question, i.answer, True) for i in drawn]
    assert "max_new_tokens: 72" in (tmp_path / "ptprune_captions.yaml").read_text()
    line = json.loads((tmp_path / "items.jsonl").read_text().splitlines()[0])
    first = line["answer"].split(", ")[0]
    assert 0 < score(line, [first])["accuracy"] < 1 == score(line, [line["answer"]])["accuracy"]


def test_an_unpruned_dialogue_is_the_stock_models(subject: examinee.Examinee) -> None:
    asked = scene_items("dev", 4, world="dialogue")
    given = subject.answers(asked)
    model, processor = subject.model, subject.processor
    for item, answer in zip(asked, given.texts, strict=True):
        conversation = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.before[0]}]},
        ]
        for question in (item.question, None):  # without a cache, the whole text every time
            inputs = chat_inputs(processor, [conversation], [[item.open()]])
            output = model.generate(**inputs, max_new_tokens=2, do_sample=False, use_cache=False)
            [text] = processor.tokenizer.batch_decode(
                output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            if question is not None:
                conversation.append({"role": "assistant", "content": [{"type": "text", "text": text.strip()}]})
                conversation.append({"role": "user", "content": [{"type": "text", "text": question}]})
        assert answer == text.strip()
    assert given.kept_tokens == sum(subject.tokens(item.size) for item in asked) / 4


@pytest.mark.parametrize("ends", [True, False])
def test_a_dialogue_goes_on_behind_the_very_tokens_that_were_written(
    subject: examinee.Examinee, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    [item] = scene_items("dev", 1, world="dialogue")
    tokenizer, generate = subject.processor.tokenizer, subject.model.generate
    comma = tokenizer.convert_tokens_to_ids(",")
    assert tokenizer("<|assistant|> ,,", add_special_tokens=False)["input_ids"][1:] != [comma, comma]
    if not ends:
        monkeypatch.setattr(subject.model.generation_config, "sequence_bias", [[[comma], 100.0]])
    turns = []

    def spying(**inputs):  # type: ignore[no-untyped-def]
        output = generate(**inputs)
        turns.append((inputs["input_ids"][0].tolist(), output.sequences[0].tolist()))
        return output

    monkeypatch.setattr(subject.model, "generate", spying)
    subject.answers([item], PyramidTokenPruning(keep_ratio=0.5))
    (asked, written), (again, _) = turns
    if ends:
        assert written.pop() == subject.model.generation_config.eos_token_id  # which the next turn begins with
        assert len(written) == len(asked) + 1
    else:
        assert written == [*asked, comma, comma]
    next_turn = f"<|end|><|user|> {item.question}<|end|><|assistant|>"
    assert again == [*written, *tokenizer(next_turn, add_special_tokens=False)["input_ids"]]


def test_a_template_that_writes_answers_anew_ends_a_dialogue(
    subject: examinee.Examinee, monkeypatch: pytest.MonkeyPatch
) -> None:
    [item] = scene_items("dev", 1, world="dialogue")
    written = "' ' + part['text'] | trim"
    forgets = subject.processor.chat_template.replace(written, f"{written} if message['role'] == 'user' else ' ...'")
    monkeypatch.setattr(subject.processor, "chat_template", forgets)
    with pytest.raises(UserError, match="writes an earlier turn otherwise"):
        subject.answers([item])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_dialogues_picture_is_pruned_for_the_first_question(subject: examinee.Examinee, layer: int) -> None:
    asked = scene_items("dev", 4, world="dialogue")
    pruner = PyramidTokenPruning(keep_ratio=0.25, layer=layer)
    changed = False
    for item in asked:
        kept = subject.answers([item], pruner).kept_tokens
        assert pruner.report is not None
        seen = pruner.report.images[0].kept
        assert len(seen) == kept == round(0.25 * subject.tokens(item.size))
        alone = replace(item, question=item.before[0], before=())
        subject.answers([alone], pruner)
        assert torch.equal(torch.as_tensor(seen), torch.as_tensor(pruner.report.images[0].kept))
        subject.answers([replace(item, before=())], pruner)
        changed |= not torch.equal(torch.as_tensor(seen), torch.as_tensor(pruner.report.images[0].kept))
    assert changed  # the second question would have kept others


def test_the_json_object_of_lists(bench: Command) -> None:
    document = bench(*QUICK, "--scenes", "captions", "--limit", 3, "--json").silent.document
    assert document["scenes"] == "captions"
    assert document["runs"][0]["identity"]["max_new_tokens"] == 72
    for row in document["results"]:
        assert len(row["marks"]) == 3
        assert row["right"] == "".join("01"[value == 1] for value in row["marks"])
        assert row["accuracy"] == pytest.approx(100 * np.mean(row["marks"]), abs=0.01)


def test_the_table_names_the_world(bench: Command) -> None:
    line = bench(*QUICK, "--scenes", "sparse", "--background", "noise", "--limit", 2).silent.out.splitlines()[0]
    assert line == "ptprune-tiny, 2 questions about sparse, background noise of the dev split"
    plain = bench(*QUICK, "--scenes", "usual", "--limit", 2, "--json").silent.document
    assert "scenes" not in plain
    assert not any("marks" in row for row in plain["results"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scenes", "cats"], "--scenes cats: unknown; give one of usual, sparse, crowded, documents"),
        (["--background", "snow"], "--background snow: unknown; give one of mixture, plain"),
        (["--scenes", "documents", "--background", "plain"], "--background plain: documents has its own"),
        (["--scenes", "sparse", "--items", "."], "--scenes: not with --items"),
        (["--background", "plain", "--items", "."], "--background: not with --items"),
    ],
    ids=" ".join,
)
def test_bad_options(bench: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.setattr(examinee.Examinee, "answers", None)  # refused before anything is computed
    refused(bench(*arguments, "--limit", "1"), says)


def test_dialogues_are_not_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused(command(capsys)("items", "dialogue", str(tmp_path / "new")), "bench accuracy --scenes dialogue")
    with pytest.raises(UserError, match="unknown"):
        scene_items("dev", 1, world="cats")
