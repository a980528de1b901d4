"""The page: which controls there are, and what each of them does. The only file that needs Gradio."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ptprune.app import parts
from ptprune.app.captions import captions
from ptprune.app.desk import PRUNED, UNPRUNED, Desk, Left, NothingAsked
from ptprune.app.examples import EXAMPLES
from ptprune.app.form import LEVELS, MAX_NEW_TOKENS, MAX_QUESTION, OWN_LEVELS, Form, names_of
from ptprune.app.snippet import document, program
from ptprune.app.trouble import open_upload, said
from ptprune.app.visit import Visit, Visits
from ptprune.clock import Clock
from ptprune.draw import draw_overlay
from ptprune.errors import UserError
from ptprune.explain import draw_explanation, levels
from ptprune.methods import METHODS
from ptprune.results.table import duration

HEAD = """<div class="ptp-head"><h1>ptprune</h1><p>Ask about a picture with fewer visual tokens, and see which ones the
model keeps and why.</p></div>"""
# the browser saves what it was given as text: no file on the server
SAVE = """(packed) => {
  const [name, address] = packed.split("|", 2), link = document.createElement("a");
  if (!address) return;
  link.href = address; link.download = name; document.body.append(link); link.click(); link.remove();
}"""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Gradio would open uploads with Pillow. ``Form.read`` checks all values, and ``open_picture`` reads within its limits.
AS_SENT: dict[str, Any] = {**QUIET, "preprocess": False}


def build(desk: Desk, visits: Visits) -> gr.Blocks:
    """The page.

    Args:
        desk: answers what visitors ask.
        visits: remembers them while their pages are open.
    """
    names = list(desk.models.offered)
    with gr.Blocks(title="ptprune", analytics_enabled=False, delete_cache=(300, 3600)) as page:
        gr.HTML(HEAD)
        with gr.Row(elem_classes="ptp-columns"):
            with gr.Column(scale=4, min_width=300):
                picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], height=260, buttons=[], elem_id="picture"
                )
                question = gr.Textbox(
                    label="Question",
                    placeholder="What do you want to know?",
                    max_length=MAX_QUESTION,
                    elem_id="question",
                )
                with gr.Row(elem_id="buttons"):
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop", min_width=80, scale=0)
                gr.Examples(
                    [[str(each.path), each.question] for each in EXAMPLES],
                    [picture, question],
                    label="Drawn examples, which the small model that ships can answer",
                    elem_id="examples",
                    api_visibility="private",
                )
                with gr.Column(elem_id="settings"):
                    method = gr.Dropdown(list(METHODS), value="ptp", label="Method", elem_id="method")
                    used = gr.CheckboxGroup(
                        list(LEVELS), value=list(OWN_LEVELS["ptp"]), label="Levels", elem_id="levels"
                    )
                    compare = gr.Checkbox(True, label="Answer without pruning too", elem_id="compare")
                    model = gr.Dropdown(
                        names,
                        value=names[0],
                        label="Model",
                        info="Any name on the Hub, or a directory." if desk.models.any_name else None,
                        allow_custom_value=desk.models.any_name,
                        interactive=desk.models.any_name or len(names) > 1,
                        elem_id="model",
                    )
                    with gr.Accordion("More settings", open=False, elem_id="more-settings"):
                        with gr.Row():
                            tiles, layer = _optional("Most tiles"), _optional("Layer")
                        with gr.Row():
                            alpha, temperature = _optional("Question's weight"), _optional("Evenness of tiles")
                        thumbnail = gr.Dropdown(
                            [("default", ""), "ratio", "whole", "region"], value="", label="Thumbnail"
                        )
                        with gr.Row():
                            encoded = gr.Dropdown(
                                [("salient, others as background", ""), ("salient, others dropped", "salient"), "all"],
                                value="",
                                label="Tiles to encode",
                                min_width=110,
                                elem_id="tiles",
                            )
                            vision_layer = _optional("Encoder layer to drop patches before")
                        longest = gr.Number(
                            64, label="Longest answer, in tokens", precision=0, minimum=1, maximum=MAX_NEW_TOKENS
                        )
                        more = gr.Textbox(
                            label="Further settings, as in Python",
                            placeholder='ranking="image", window=8',
                            elem_id="more",
                        )
                        others = gr.HTML(_others("ptp"))
            with gr.Column(scale=7, min_width=320):
                note = gr.HTML(parts.note("Choose a picture, ask, then move the slider."), elem_id="note")
                answers = gr.HTML(parts.answers(None, None), elem_id="answers")
                ratio = gr.Slider(
                    0.01, 1, 0.5, step=0.01, label="Keep ratio: the share of visual tokens that stay", elem_id="ratio"
                )
                kept = gr.HTML(elem_id="kept", elem_classes="ptp-shown")
                bars = gr.HTML(elem_id="bars")
                maps = gr.HTML(elem_id="maps", elem_classes="ptp-shown")
                with gr.Row(elem_id="saves"):
                    saves = [
                        gr.Button(label, size="sm", min_width=90, elem_id=f"save-{name}")
                        for label, name in (("Kept tokens", "kept"), ("Heat maps", "why"), ("Numbers", "json"))
                    ]
                with gr.Accordion("The same in Python", open=False, elem_id="program"):
                    code = gr.Code(language="python", show_label=False, elem_id="code", interactive=False)
                packed = gr.Textbox(visible="hidden", elem_id="packed")

        folder = Path(picture.GRADIO_CACHE).resolve()
        ours = {str(file) for file in folder.rglob("*") if file.is_file()}  # the examples; an upload may be the same
        picture.keep_in_cache |= ours
        controls: dict[str, Any] = {
            "picture": picture,
            "question": question,
            "model": model,
            "method": method,
            "keep_ratio": ratio,
            "levels": used,
            "layer": layer,
            "alpha": alpha,
            "temperature": temperature,
            "thumbnail": thumbnail,
            "tiles": encoded,
            "vision_layer": vision_layer,
            "max_tiles": tiles,
            "max_new_tokens": longest,
            "more": more,
            "compare": compare,
        }
        shown = [note, answers, kept, bars, maps, code]

        def visit_of(request: gr.Request) -> Visit:
            # a program that does not say who it is is remembered by nobody
            return visits.get(request.session_hash) if request.session_hash else Visit()

        def read(values: tuple[Any, ...]) -> Form:
            given = dict(zip(controls, values, strict=True))
            return Form.read({**given, "picture": uploaded(given["picture"], folder)})

        def source(form: Form) -> str:
            return program(form, str(desk.models.device), desk.models.dtype)

        def on_ask(request: gr.Request, *values: Any) -> Iterator[Any]:
            visit = visit_of(request)
            texts: dict[str, str] = {}
            try:
                form = read(values)
                going = desk.answer(form, visit)
                yield _show(note=parts.note("waiting for its turn"), answers=parts.answers(None, None))
                while True:
                    try:
                        word = next(going)
                    except StopIteration as ended:
                        answered = ended.value
                        break
                    if word.of in (UNPRUNED, PRUNED):
                        texts[word.of] = (texts.get(word.of, "") + word.text).lstrip()
                        yield _show(answers=parts.answers(texts.get(UNPRUNED), texts.get(PRUNED)))
                    else:
                        yield _show(note=parts.note(f"{word.text} ..."))
                yield _show(
                    note=parts.note(f"{_kept(visit)}. Move the slider to choose again."),
                    answers=parts.answers(
                        answered.unpruned.text if answered.unpruned else None, answered.pruned.text, answered
                    ),
                    code=source(form),
                    **_drawings(visit),
                )
            except Left:
                yield _show(note=parts.note("Stopped."))
            except Exception as error:
                yield _show(note=parts.note(said(error), trouble=True))

        def on_change(request: gr.Request, *values: Any) -> Any:
            visit = visit_of(request)
            try:
                form, clock = read(values), Clock()
                program_now = source(form)
                with clock.lap("choice"):
                    again = desk.choose(form, visit)
                how = "encoded again for these settings" if again else "chosen from what was encoded before"
                told = (
                    f"{_kept(visit)}, {how}, in {duration(clock.seconds['choice'])}. Ask again for an answer with them."
                )
                return _show(note=parts.note(told), code=program_now, **_drawings(visit))
            except NothingAsked:
                return _show(note=parts.note("Ask, and see what these settings keep."), code=program_now)
            except Exception as error:
                return _show(note=_told(error))

        def on_picture(sent: Any, request: gr.Request) -> Any:
            """Say at once what is wrong with a picture, and remember to delete its file."""
            if not sent:
                return [gr.skip()] * (1 + len(shown))
            visit = visit_of(request)
            visit.mapped = None
            try:
                file = uploaded(sent, folder)
                assert file is not None
                if str(file) not in ours:
                    visit.files.add(file)
                open_upload(file)
            except Exception as error:
                return [None, *_show(note=_told(error))]
            return [gr.skip(), *_show(note=parts.note(), answers=parts.answers(None, None), kept="", bars="", maps="")]

        def on_save(what: str) -> Any:
            def save(request: gr.Request) -> str:
                shown = visit_of(request).shown
                if shown is None:
                    gr.Info("Ask first: there is nothing to save yet.")
                    return ""
                if what == "json":
                    text = json.dumps(document(shown), indent=2)
                    return f"ptprune.json|data:application/json;base64,{b64encode(text.encode()).decode()}"
                drawn = (draw_overlay if what == "kept" else draw_explanation)(shown.drawing, shown.report.images[0])
                return f"ptprune-{what}.png|{parts.picture_data(drawn, 'PNG')}"

            return save

        def on_stop(request: gr.Request) -> None:
            visit_of(request).stop.set()

        def on_leave(request: gr.Request) -> None:
            visits.forget(str(request.session_hash))

        asking: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, **AS_SENT}
        gr.on([ask.click, question.submit], on_ask, list(controls.values()), shown, **asking)
        stop.click(on_stop, concurrency_limit=None, **QUIET)
        changes = [each.change for each in (ratio, used, thumbnail, encoded, method, longest, model)]
        written = (alpha, temperature, layer, vision_layer, tiles, more)
        changes += [question.blur, *(event for box in written for event in (box.submit, box.blur))]
        gr.on(
            changes,
            on_change,
            list(controls.values()),
            shown,
            trigger_mode="always_last",
            concurrency_limit=4,
            **AS_SENT,
        )
        method.change(lambda name: (_own_levels(name), _others(name)), method, [used, others], **QUIET)
        picture.change(on_picture, picture, [picture, *shown], **AS_SENT)
        for button, what in zip(saves, ("kept", "why", "json"), strict=True):
            button.click(on_save(what), outputs=packed, **QUIET).then(None, packed, js=SAVE)
        page.unload(on_leave)
    return page


def uploaded(sent: Any, folder: Path) -> Path | None:
    """The file that a browser names as its picture; None for no picture.

    Raises:
        UserError: where it names one that was not uploaded.
    """
    if not sent:
        return None
    named = sent.get("path") if isinstance(sent, dict) else None
    if not isinstance(named, str) or not (file := Path(named).resolve()).is_relative_to(folder):
        raise UserError("picture: upload it again")
    return file


def _optional(label: str) -> gr.Textbox:
    """A number that may be left empty, which Gradio's own field for numbers cannot: it makes 0 of nothing."""
    return gr.Textbox(label=label, placeholder="default", min_width=110, max_lines=1)


def _told(error: BaseException) -> str:
    return parts.note(said(error), trouble=True)


def _own_levels(method: str) -> dict[str, Any]:
    """The choice of levels as a method has them by default; hidden where it has none."""
    return gr.update(visible=method in OWN_LEVELS, value=list(OWN_LEVELS.get(method, ())))


def _others(method: str) -> str:
    """The settings that can be written by hand."""
    names = ", ".join(f"{name}={default!r}" for name, default in names_of(method).items())
    return parts.small(f"{method} also has {names}")


def _show(**changed: str) -> list[Any]:
    """The outputs of an event, in their order; those that are not named stay as they are."""
    order = ("note", "answers", "kept", "bars", "maps", "code")
    return [changed.get(name, gr.skip()) for name in order]


def _kept(visit: Visit) -> str:
    assert visit.shown is not None
    before, after = visit.shown.report.visual_tokens
    return f"{before} -> {after} visual tokens"


def _drawings(visit: Visit) -> dict[str, str]:
    """What is shown of a visit. Heat maps do not change with the ratio, and are drawn once for all of them."""
    assert visit.shown is not None
    shown, image = visit.shown, visit.shown.report.images[0]
    drawn = {"kept": parts.kept(shown.drawing, image), "bars": parts.bars(shown.report, shown.answered)}
    alike = replace(shown.form, keep_ratio=1.0), levels(image)
    if visit.mapped != alike:
        visit.mapped = alike
        drawn["maps"] = parts.heat_maps(shown.drawing, image, captions(shown.pruner))
    return drawn
