"""Accuracy of the checkpoint, unpruned and pruned: ``python -m training.evaluate``.

Greedy decoding through the stock processor and the stock model; an answer is right if the decoded text is the word.
Writes training/results.json and the tables in training/README.md. ``--tune`` instead compares temperatures and alphas
on the development split and writes training/tuning.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tools.marked import write_between
from transformers import AutoModelForImageTextToText

from ptprune.checkpoints.processor import load_processor
from ptprune.tiny import CHECKPOINT
from ptprune.tiny.questions import QUESTION_KINDS, Question, ask
from ptprune.tiny.scenes import generate_scene
from ptprune.tiny.world import TILE

HERE = Path(__file__).parent
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)
Item = tuple[Image.Image, int, Question]


def load_items(split: str, scenes: int, questions: int, first: int = 0) -> list[Item]:
    """(picture, number of tiles, question), sorted by number of tiles so that batches need little padding."""
    items = []
    for seed in range(first, first + scenes):
        scene = generate_scene(split, seed)
        items += [(scene.image, scene.tiles, question) for question in ask(scene, questions)]
    return sorted(items, key=lambda item: item[1])


def untouched(image: Image.Image) -> Image.Image:
    return image


def thumbnail_only(image: Image.Image) -> Image.Image:
    return image.resize((TILE, TILE), Image.Resampling.BICUBIC)


def blanked(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, (128, 128, 128))


class Examinee:
    def __init__(self, directory: Path = CHECKPOINT, batch: int = 16) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(directory).eval()
        self.processor = load_processor(directory)
        self.batch = batch

    def answers(
        self, items: list[Item], pruner: Any = None, change: Callable[[Image.Image], Image.Image] = untouched
    ) -> tuple[list[str], int, int]:
        """The model's answers, and how many visual tokens there were before and after pruning."""
        given: list[str] = []
        before = after = 0
        for chunk in _chunks(items, self.batch):
            prompts = [
                self.processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}],
                    add_generation_prompt=True,
                )
                for _, _, question in chunk
            ]
            inputs = self.processor(
                text=prompts, images=[[change(image)] for image, _, _ in chunk], padding=True, return_tensors="pt"
            )
            with torch.no_grad(), nullcontext() if pruner is None else pruner(self.model):
                output = self.model.generate(**inputs, max_new_tokens=2, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            given += [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]
            tokens = int((inputs["input_ids"] == self.processor.image_token_id).sum())
            before += tokens
            after += tokens if pruner is None else sum(len(image.kept) for image in pruner.report.images)
        return given, before, after


def _chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def score(items: list[Item], given: list[str]) -> dict[str, Any]:
    by_kind = {}
    for kind in QUESTION_KINDS:
        hits = [answer == item[2].answer for item, answer in zip(items, given, strict=True) if item[2].kind == kind]
        if hits:
            by_kind[kind] = round(sum(hits) / len(hits), 4)
    right = sum(answer == item[2].answer for item, answer in zip(items, given, strict=True))
    low, high = wilson(right, len(items))
    return {
        "accuracy": round(right / len(items), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "by_kind": by_kind,
        "items": len(items),
    }


def guessing(items: list[Item]) -> list[str]:
    """Chance: for each question the commonest answer of the training split to questions of its form."""

    def form(question: Question) -> str:
        return question.text if question.kind == "count" else question.kind

    seen: dict[str, Counter[str]] = {}
    for seed in range(1000):
        for question in ask(generate_scene("train", 900_000 + seed), 4):
            seen.setdefault(form(question), Counter())[question.answer] += 1
    return [seen[form(question)].most_common(1)[0][0] for _, _, question in items]


def examine(split: str, scenes: int, questions: int, directory: Path) -> dict[str, Any]:
    from ptprune import PyramidTokenPruning, RandomPruning

    examinee = Examinee(directory)
    items = load_items(split, scenes, questions)
    results: list[dict[str, Any]] = []

    def arm(method: str, ratio: float | None, pruner: Any = None, change: Callable = untouched) -> None:
        began = time.monotonic()
        given, before, after = examinee.answers(items, pruner, change)
        row = {"method": method, "keep_ratio": ratio, **score(items, given), "visual_tokens": [before, after]}
        if results:
            row["retention"] = round(row["accuracy"] / results[0]["accuracy"], 4)
        results.append(row)
        print(f"{method} {ratio}: {row['accuracy']:.3f} ({time.monotonic() - began:.0f} s)", file=sys.stderr)

    arm("none", None)
    arm("thumbnail only", None, change=thumbnail_only)
    arm("blanked picture", None, change=blanked)
    results.append({"method": "guessing", "keep_ratio": None, **score(items, guessing(items))})
    for ratio in RATIOS:
        arm("ptp", ratio, PyramidTokenPruning(keep_ratio=ratio))
        if ratio < 1:  # at 1 every method keeps everything
            arm("bottom-up", ratio, PyramidTokenPruning(keep_ratio=ratio, alpha=0.0))
            arm("random", ratio, RandomPruning(keep_ratio=ratio))
    return {"model": "ptprune-tiny", "split": split, "scenes": scenes, "items": len(items), "results": results}


def tune(scenes: int, directory: Path) -> list[dict[str, Any]]:
    """Region temperature and alpha, on the development split."""
    from ptprune import PyramidTokenPruning

    examinee = Examinee(directory)
    items = load_items("dev", scenes, 1, first=5000)
    default = PyramidTokenPruning(keep_ratio=0.5)
    options: list[dict[str, Any]] = [{"temperature": t} for t in (0.5, 1.0, 2.0, 4.0)] + [{"region": "uniform"}]
    options += [{"alpha": a} for a in (0.0, 0.25, 0.75, 1.0)]
    rows = []
    for option in options:
        row: dict[str, Any] = {"temperature": default.temperature, "alpha": default.alpha, **option}
        for ratio in (0.5, 0.25, 0.1):
            given, _, _ = examinee.answers(items, PyramidTokenPruning(keep_ratio=ratio, **option))
            row[str(ratio)] = score(items, given)["accuracy"]
        print(row, file=sys.stderr)
        rows.append(row)
    return rows


def tables(report: dict[str, Any]) -> str:
    """The two Markdown tables of training/README.md."""
    rows = report["results"]
    plain = [row for row in rows if row["keep_ratio"] is None]
    lines = [
        f"{report['items']} questions about {report['scenes']} scenes of the {report['split']} split; accuracy in %.",
        "",
        "| | all | " + " | ".join(QUESTION_KINDS) + " |",
        "| --- |" + " ---: |" * (len(QUESTION_KINDS) + 1),
    ]
    for row in plain:
        name = "unpruned" if row["method"] == "none" else row["method"]
        cells = [f"{100 * row['by_kind'].get(kind, float('nan')):.1f}" for kind in QUESTION_KINDS]
        lines.append(f"| {name} | **{100 * row['accuracy']:.1f}** | " + " | ".join(cells) + " |")
    lines += ["", "| keep ratio | PTP | bottom-up only (alpha 0) | random |", "| ---: | ---: | ---: | ---: |"]
    for ratio in RATIOS:
        cells = []
        for method in ("ptp", "bottom-up", "random"):
            row = next(r for r in rows if r["method"] == (method if ratio < 1 else "ptp") and r["keep_ratio"] == ratio)
            cells.append(f"{100 * row['accuracy']:.1f} ({100 * row['retention']:.1f}% kept)")
        lines.append(f"| {ratio:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tuning_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| region | temperature | alpha | 0.5 | 0.25 | 0.1 |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        region, temperature = row.get("region", "cls-similarity"), "-" if "region" in row else row["temperature"]
        cells = [f"{100 * row[ratio]:.1f}" for ratio in ("0.5", "0.25", "0.1")]
        lines.append(f"| {region} | {temperature} | {row['alpha']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables() -> None:
    """Put what was measured last into training/README.md."""
    report = json.loads((HERE / "results.json").read_text())
    write_between(HERE / "README.md", "accuracy", tables(report))
    write_between(HERE / "README.md", "tuning", tuning_table(json.loads((HERE / "tuning.json").read_text())))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=1, help="questions a scene")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only write the tables again")
    arguments = parser.parse_args()
    if arguments.tune:
        rows = tune(arguments.scenes, arguments.checkpoint)
        (HERE / "tuning.json").write_text(json.dumps(rows, indent=1) + "\n")
        return
    if not arguments.tables:
        report = examine(arguments.split, arguments.scenes, arguments.questions, arguments.checkpoint)
        if arguments.print:
            print(tables(report))
            return
        (HERE / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    write_tables()


if __name__ == "__main__":
    main()
