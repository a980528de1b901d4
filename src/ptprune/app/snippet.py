"""The page's settings as a program, and what is shown as JSON."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ptprune.app.form import Form
from ptprune.app.visit import Shown
from ptprune.asking.answer import describe, regions_of
from ptprune.pruner import TokenPruner

PROGRAM = """\
import torch

from ptprune.asking.chat import make_prompt
from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.methods import {method}
from ptprune.pictures import open_picture

loaded = LoadedModel.load(Checkpoint.find({model!r}), torch.device({device!r}), {dtype!r}{tiles})
model, processor = loaded.model, loaded.processor
picture = open_picture({picture!r})
inputs = make_prompt(model, processor, [picture], {question!r}, loaded.image_options).to(model.device)

pruner = {pruner}
with pruner(model), torch.no_grad():
    output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
answer = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
print(answer)
print(pruner.report)
"""


def settings_of(pruner: TokenPruner) -> dict[str, Any]:
    """The ratio, and every setting that is not as it always is."""
    told = {"keep_ratio": pruner.keep_ratio} | pruner.differing()
    return {each.name: told[each.name] for each in fields(pruner) if each.name in told}


def program(form: Form, device: str = "cpu", dtype: str = "auto") -> str:
    """A program that prints the answer of the page, with exactly its settings.

    Raises:
        PtpruneError: where the form's settings are refused.
    """
    pruner = form.pruner()
    method = type(pruner).__name__
    made = f"{method}({', '.join(f'{name}={value!r}' for name, value in settings_of(pruner).items())})"
    return PROGRAM.format(
        method=method,
        pruner=made if form.tells_encoding() else f"loaded.sparing({made})",
        model=form.model,
        device=device,
        dtype=dtype,
        tiles="" if form.max_tiles is None else f", max_tiles={form.max_tiles}",
        picture=form.picture.name if form.picture else "picture.png",
        question=form.question,
        max_new_tokens=form.max_new_tokens,
    )


def document(shown: Shown) -> dict[str, Any]:
    """What is shown, in JSON types.

    The keys are those of ``ptprune run --json`` and, besides them, ``method``, ``settings``, ``kept`` (indices of
    visual tokens) and ``scores``. Where the settings were changed after the answer, what only an answer tells is left
    out.
    """
    form, kept, answered = shown.form, shown.report.to_dict(), shown.answered
    found: dict[str, Any] = {
        "model": form.model,
        "question": form.question,
        "method": form.method,
        "settings": settings_of(shown.pruner),
    }
    if answered.report is shown.report:
        found |= describe(answered.pruned, answered.unpruned, answered.report)
    else:
        pairs = {name: kept[name] for name in ("visual_tokens", "encoded_tiles", "encoded_tokens")}
        pairs["sequence_length"] = kept["sequence_length"][0]
        found |= {name: dict(zip(("before", "after"), pair, strict=True)) for name, pair in pairs.items()}
        found["regions"] = regions_of(kept)
    [image] = kept["images"]
    return found | {"kept": image["kept"], "scores": image["scores"]}
