"""The command ``ptprune``: one thin file a command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ptprune.cli import options, web
from ptprune.cli.bench_accuracy import accuracy
from ptprune.cli.bench_overhead import overhead
from ptprune.cli.bench_report import report
from ptprune.cli.bench_speed import speed
from ptprune.cli.console import note
from ptprune.cli.cost import cost
from ptprune.cli.eval import eval
from ptprune.cli.help import Command, Group
from ptprune.cli.items import items
from ptprune.cli.listings import methods, models
from ptprune.cli.run import run
from ptprune.cli.verify import verify
from ptprune.errors import BrokenPass, PtpruneError, SettingError, UnknownSetting

app = typer.Typer(
    help="Pyramid Token Pruning: fewer visual tokens for tiled vision-language models.",
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, web.app, verify, models, methods, cost, items, eval):
    app.command(cls=Command)(command)
bench = typer.Typer(name="bench", cls=Group, help="Measure accuracy and speed with and without pruning.")
for measuring in (accuracy, speed, overhead, report):
    bench.command(cls=Command)(measuring)
app.add_typer(bench)


def print_version(wanted: bool) -> None:
    """This package's version and those that matter most to it, in one line for bug reports, and leave."""
    if not wanted:
        return
    from ptprune import __version__

    others = []
    for name in ("torch", "transformers"):
        try:
            others.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            others.append(f"no {name}")
    print(f"ptprune {__version__} ({', '.join(others)}, Python {platform.python_version()})")
    raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with 0 (done), 2 (wrong usage or unreadable input) or 1 (anything unexpected)."""
    try:
        status = app(args=arguments, prog_name="ptprune", standalone_mode=False)
    except BrokenPass as error:
        _leave(str(error), status=1)
    except PtpruneError as error:
        of_option = isinstance(error, SettingError) and not isinstance(error, UnknownSetting)
        _leave(options.as_option(str(error)) if of_option else str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Wrong usage, found by the option parser. Recognised by its method: its class has moved between packages.
        if not hasattr(error, "format_message"):
            raise
        _leave(error.format_message().rstrip(".") + "; see `ptprune --help`")
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _leave(message: str, status: int = 2) -> None:
    note(message)
    sys.exit(status)
