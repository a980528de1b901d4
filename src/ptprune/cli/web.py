"""``ptprune app``: the page in the browser."""

from __future__ import annotations

import signal
import time
from typing import Annotated

import typer

from ptprune.cli import options
from ptprune.cli.console import out, quiet_libraries, working

server = options.partial(typer.Option, rich_help_panel="Server")


def app(
    model: Annotated[
        list[str] | None,
        options.model(
            "--model",
            help="Checkpoint directory or Hub name to offer; may be repeated. Default: the one that ships.",
            metavar="ID_OR_DIR",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    host: Annotated[
        str, server("--host", help="Address to listen on. On another one, visitors get only the models of --model.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, server("--port", min=1, max=65535, help="Port.", show_default="the first free one from 7860")
    ] = None,
    share: Annotated[bool, server("--share", help="Also make a public address at gradio.live.")] = False,
    browser: Annotated[bool, server("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Ask about pictures in the browser, and see which tokens are kept and why. Needs the extra "web"."""
    with working("loading torch and transformers"):
        from ptprune.app.models import Models
        from ptprune.app.server import HERE, serving
        from ptprune.checkpoints import Checkpoint, choose_device, choose_dtype
        from ptprune.checkpoints.checkpoint import SHIPPED

        quiet_libraries()
        offered = tuple(model or (SHIPPED,))
        for name in offered:  # refused now rather than to the first visitor
            Checkpoint.find(name, weights=False)
        alone = host in HERE and not share
        models = Models(offered, alone, choose_device(device), choose_dtype(dtype))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: uploads are deleted then, too
    with serving(models, host, port, share=share, browser=browser) as page:
        console = out()
        console.print(f"ptprune app: [bold]{page.local_url}[/bold]")
        if page.share_url:
            console.print(f"everybody can open [bold]{page.share_url}[/bold]")
        console.print("Ctrl-C stops it.", style="dim")
        while True:  # until Ctrl-C
            time.sleep(3600)
