"""The page as ``ptprune app`` serves it, and Debian's Chromium in front of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries that read it: no test may wait for a network

import pytest
import torch
from playwright import sync_api

from ptprune.cli.console import quiet_libraries

PATIENCE = 120_000  # milliseconds; models are small, machines may be busy
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

torch.set_num_threads(1)  # the models are tiny: threads only wait for each other
quiet_libraries()


@dataclass
class Server:
    """``ptprune app`` in a process of its own. ``temporary``: the only place where it may write."""

    address: str
    temporary: Path

    def files(self) -> set[str]:
        """Names of the files that lie there now."""
        return {path.name for path in self.temporary.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    temporary, folder = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("folder")
    process = subprocess.Popen(
        [sys.executable, "-m", "ptprune", "app"],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found, "ptprune app ended without an address"
        yield Server(found.group(), temporary)
        assert process.poll() is None, "ptprune app ended while it was used"
    finally:
        process.send_signal(signal.SIGTERM)  # shells may start background jobs with SIGINT ignored
        code = process.wait(60)
    assert code == 130  # as after Ctrl-C
    assert list(folder.iterdir()) == []
    assert list(temporary.iterdir()) == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        installed = next((path for path in map(shutil.which, CHROMIUM) if path), None)
        try:
            # containers run as root, where Chromium has no sandbox
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: `apt-get install chromium` brings one ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """``visitor()``: a new visitor's page. What it asked of other hosts, or logged as an error, fails the test."""
    contexts, strange = [], []

    def visit(**options: Any) -> Any:
        contexts.append(context := browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on(
            "request",
            lambda request: request.url.startswith((server.address, "data:", "blob:")) or strange.append(request.url),
        )
        page.on("pageerror", lambda error: strange.append(str(error)))
        page.goto(server.address)
        page.wait_for_selector("#ask")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert strange == []
