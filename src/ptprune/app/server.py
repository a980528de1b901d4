"""Serves the page: who can reach it, what it may write, and nothing that tells anybody of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ptprune.app.desk import Desk
from ptprune.app.models import Models
from ptprune.app.visit import Visits
from ptprune.errors import UserError
from ptprune.pictures import MAX_PIXELS

HERE = ("127.0.0.1", "localhost", "::1")
MAX_UPLOAD = 3 * MAX_PIXELS + (1 << 20)  # bytes: the largest picture that is accepted, uncompressed
STYLE = Path(__file__).parent / "style.css"


@contextmanager
def serving(
    models: Models, host: str = HERE[0], port: int | None = None, *, share: bool = False, browser: bool = False
) -> Iterator[Any]:
    """The running page, for the length of a block; yields Gradio's Blocks, whose ``local_url`` is its address.

    Uploads lie in a folder of their own that only this user can read. Each is deleted when its visitor's page is
    closed, and the folder at the end. Nothing else is written, and nothing is sent to anybody.

    Args:
        host: to listen on; "0.0.0.0" for all networks.
        port: None for the first free one from 7860.
        share: make an address at gradio.live, which everybody who knows it can open.
        browser: open the page in the browser.

    Raises:
        UserError: where Gradio is missing or the port is taken.
    """
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'ptprune[web]'")
    with tempfile.TemporaryDirectory(prefix="ptprune-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when the page is built
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import gradio as gr

        from ptprune.app.page import build

        desk, visits = Desk(models), Visits()
        page = build(desk, visits)
        page.queue(max_size=64)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=share,
                inbrowser=browser,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=MAX_UPLOAD,
                theme=_theme(gr),
                css_paths=[STYLE],
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except OSError as error:
            raise UserError(f"port {port or 'from 7860'}: cannot be listened on at {host} ({error})") from None
        try:
            yield page
        finally:
            page.close(verbose=False)
            desk.turns.close()
            visits.clear()


def _theme(gr: Any) -> Any:
    """Gradio's look with the system's own fonts: the page loads nothing from elsewhere."""
    return gr.themes.Default(
        primary_hue="amber",
        neutral_hue="zinc",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
