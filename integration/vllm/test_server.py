"""vLLM's own OpenAI server with the plugin, over loopback, called with the openai client."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from engines import ANSWER_LENGTH, BY_SCORE, HIGH, SMALL, SQUARE, WHOLE, WIDE, in_transformers, turn
from PIL import Image

from ptprune.tiny import CHECKPOINT

SETTING = json.dumps({"ptprune": {"keep_ratio": 0.5, **BY_SCORE}})
QUESTIONS = ["which digit is blue?", "what colour is the 7?", "how many letters are there?"]
START_SECONDS = 400  # seconds on an idle machine, minutes on a busy one


class Server:
    """One server process group at a time on one port."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(CHECKPOINT)]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--hf-overrides", SETTING, "--trust-request-mm-kwargs", "--dtype", "float32"]
        command += [
            "--kv-cache-memory-bytes",
            str(2**26),
            "--max-model-len",
            "1024",
            "--enforce-eager",
            "--limit-mm-per-prompt",
            '{"image": 3, "video": 0}',
        ]
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.log.parent
            )
        end = time.monotonic() + START_SECONDS
        while not self._healthy():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(1)

    def _healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log")
    yield server
    server.kill()


def as_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def ask(client: openai.OpenAI, question: str, url: str | None, asked: object = None) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of the answer, as the server counts them; asked: a ratio, or several settings."""
    content: list[dict] = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    extra: dict = {"ignore_eos": True, "return_token_ids": True}
    if asked is not None:
        extra["mm_processor_kwargs"] = {"ptprune": asked if isinstance(asked, dict) else {"keep_ratio": asked}}
    response = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        temperature=0,
        max_tokens=ANSWER_LENGTH,
        extra_body=extra,
    )
    assert response.usage.prompt_tokens == len(response.prompt_token_ids)
    return response.prompt_token_ids, response.choices[0].token_ids


def expected(question: str, image: Image.Image, ratio: float | None) -> tuple[list[int], list[int]]:
    answer = in_transformers(turn(question), [image], {"keep_ratio": min(ratio or 0.5, 0.5), **BY_SCORE})
    return answer.prompt, answer.tokens


def test_no_request_of_concurrent_clients_is_lost_or_mixed_up(server: Server) -> None:
    requests = [
        (question, image, ratio)
        for question in QUESTIONS
        for image in (WIDE, HIGH, SQUARE, SMALL)
        for ratio in (None, 0.5, 0.3, 0.1)
    ]
    urls = {id(image): as_url(image) for image in (WIDE, HIGH, SQUARE, SMALL)}
    clients = [server.client for _ in range(8)]

    def send(number: int) -> tuple[list[int], list[int]]:
        question, image, ratio = requests[number % len(requests)]
        return ask(clients[number % 8], question, urls[id(image)], ratio)

    numbers = [7 * n % 48 for n in range(48)] + list(range(48))  # every request twice, out of order
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, numbers))
    wanted = [expected(*request) for request in requests]
    assert answers == [wanted[number] for number in numbers]
    assert len({tuple(tokens) for _, tokens in wanted}) > 5  # or mixing would not show


def test_a_request_for_fewer_tiles(server: Server) -> None:
    for asked in ({"tiles": "salient", "tile_threshold": 0.5}, {"tiles": 2, "keep_ratio": 0.1}):
        expected = in_transformers(turn(QUESTIONS[0]), [WHOLE], {"keep_ratio": 0.5, **BY_SCORE, **asked})
        assert ask(server.client, QUESTIONS[0], as_url(WHOLE), asked) == (expected.prompt, expected.tokens)


def test_text_without_a_picture(server: Server) -> None:
    prompt, tokens = ask(server.client, QUESTIONS[0], None)
    assert len(tokens) == ANSWER_LENGTH
    assert 6 not in prompt


@pytest.mark.parametrize("ratio", [0, 2, "half", [0.5]])
def test_a_bad_ratio_is_the_clients_fault(server: Server, ratio: object) -> None:
    with pytest.raises(openai.BadRequestError, match="ptprune: keep_ratio must be over 0 and at most 1"):
        ask(server.client, QUESTIONS[0], as_url(WIDE), ratio)


def test_a_bad_image_is_the_clients_fault(server: Server) -> None:
    whole = as_url(WIDE)
    for url in ("data:image/png;base64," + base64.b64encode(b"no picture").decode(), whole[: len(whole) // 2]):
        with pytest.raises(openai.BadRequestError):
            ask(server.client, QUESTIONS[0], url)
    assert ask(server.client, QUESTIONS[0], whole) == expected(QUESTIONS[0], WIDE, None)


def test_killed_and_started_again(server: Server) -> None:
    before = ask(server.client, QUESTIONS[1], as_url(WIDE), 0.3)
    server.kill()
    with pytest.raises(openai.APIConnectionError):
        ask(server.client, QUESTIONS[1], as_url(WIDE), 0.3)
    server.start()
    assert ask(server.client, QUESTIONS[1], as_url(WIDE), 0.3) == before
