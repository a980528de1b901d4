"""What ``ptprune eval`` and ``ptprune items`` refuse before lmms-eval is needed."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ptprune.checkpoints import hub
from tests.command import command, refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "all"], "--suite all: unknown; give one of ptp13, hires, local"),
        (["--suite", "hires", "--benchmarks", "docvqa,mme"], "'mme' is not in suite hires; give some of DocVQA"),
        (["--keep-ratio", "1,2"], "--keep-ratio 1,2: 2 is out of range"),
        (["--keep-ratio", "half"], "--keep-ratio half: 'half' is no number"),
        (["--set", "keep_ratio=1"], "--keep-ratio says how many"),
        (["--expect", "miracles"], "--expect miracles: unknown; give paper"),
        (["--limit", "0"], "--limit"),
        (["--batch", "0"], "--batch"),
    ],
    ids=" ".join,
)
def test_bad_options(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert says in refused(command(capsys)("eval", *arguments))


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pip install 'ptprune[eval]'" in refused(command(capsys)("eval", "--suite", "local"))


def test_unknown_items(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "give scenes or easy-vqa or sparse" in refused(command(capsys)("items", "cats", str(tmp_path)))
    (tmp_path / "mine.txt").write_text("mine")
    assert "holds other files" in refused(command(capsys)("items", "scenes", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 403])
def test_a_hub_within_reach(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.delenv(hub.OFFLINE, raising=False)
    monkeypatch.setattr(Answering, "status", status)
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert not hub.offline_where_unreachable()
        server.shutdown()
    assert hub.OFFLINE not in hub.os.environ
    assert hub.offline_where_unreachable()  # the server is gone
    assert hub.os.environ[hub.OFFLINE] == "1"
