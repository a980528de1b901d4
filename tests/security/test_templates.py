"""Chat templates: the same text as transformers', or one sentence, whatever a template does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from ptprune.asking.chat import ask_about
from ptprune.errors import SettingError
from ptprune.templates import RENDERER, SECONDS, Renderer, render_chats
from ptprune.tiny import CHECKPOINT

CHATS = [
    ask_about(2, " what is  it? \n"),
    [{"role": "system", "content": "be brief"}, *ask_about(1, 'ü "quoted" \\n 😀 <b>')],
    [*ask_about(1, "one?"), {"role": "assistant", "content": [{"type": "text", "text": "1"}]}, *ask_about(0, "two?")],
]
WRITTEN = [
    "{% for message in messages %}\n  {{ message | tojson }}\n{% endfor %}\n",
    "{% for message in messages %}{% if loop.first and tools %}no{% endif %}{{ message['role'] | upper }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{% continue %}{% endif %}{{ part.text | trim }}{% endfor %}{% endif %}"
    "{% generation %}x{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}{% endfor %}"
    "{{ bos_token }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}{{ documents is none }}",
    "{% set ns = namespace(n=0) %}{% macro m(x) %}{{ x ~ '!' }}{% endmacro %}{% for _ in range(3) %}"
    "{% set ns.n = ns.n + loop.index %}{% endfor %}{{ m(ns.n) }}{{ messages | length }}{{ strftime_now('%Y') }}",
]


def with_template(template: Any) -> Any:
    return SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("template", [(CHECKPOINT / "chat_template.jinja").read_text(), *WRITTEN])
@pytest.mark.parametrize("answer", [True, False])
def test_the_text_is_that_of_transformers(template: str, answer: bool) -> None:
    expected, _ = render_jinja_template(
        CHATS, chat_template=template, add_generation_prompt=answer, bos_token="<s>", eos_token="</s>"
    )
    assert render_chats(with_template(template), CHATS, answer=answer) == expected
    assert render_chats(with_template({"default": template, "tool": "no"}), CHATS, answer=answer) == expected


def test_the_shipped_tokenizer_by_itself() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT)
    chat = [{"role": "user", "content": "what is it?"}]
    assert render_chats(tokenizer, [chat]) == [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ]


HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "memory": "{{ 'x' * 10 ** 11 }}",
    "doubling": "{% set n = namespace(s='x') %}{% for _ in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "width": "{{ '%99999999999d' % 1 }}",
    "output": "{% for _ in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "raises": "{{ raise_exception('no\nway \x1b[31m') }}",
    "sandbox": "{{ ''.__class__.__mro__ }}",
    "attribute": "{{ cycler.__init__.__globals__.os.system('touch pwned') }}",
    "names": "{{ missing.a.b }}",
    "syntax": "{% for",
    "surrogate": "{{ '\ud800' }}",
    "include": "{% include '/etc/passwd' %}",
    "length": " " * 10**6,
    "type": 5,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    render_chats(with_template("{{ 1 }}"), CHATS)  # the process is there
    monkeypatch.setattr("ptprune.templates.SECONDS", 1.0)
    started = time.monotonic()
    with pytest.raises(SettingError, match="^model: its chat template"):
        render_chats(with_template(HOSTILE[name]), CHATS)
    assert time.monotonic() - started < 8
    assert list(tmp_path.iterdir()) == []
    assert render_chats(with_template("{{ 1 }}"), CHATS) == ["1"] * 3


def test_threads_and_forks_get_their_own_answers() -> None:
    texts: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        for _ in range(20):
            texts[number] = render_chats(with_template(f"{{{{ {number} }}}}{{{{ messages | length }}}}"), CHATS[:1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: [f"{number}1"] for number in range(4)}
    renderer = Renderer()
    assert renderer.render("a", CHATS, {}) == ["a"] * 3
    renderer._owner = os.getppid()  # as in a fork: the process belongs to another
    stranger = renderer._process
    assert renderer.render("b", CHATS, {}) == ["b"] * 3
    assert renderer._process is not stranger
    assert stranger is not None
    assert stranger.poll() is None
    stranger.kill()
    renderer.close()


def test_a_prompt_costs_a_millisecond() -> None:
    template = (CHECKPOINT / "chat_template.jinja").read_text()
    render_chats(with_template(template), CHATS)
    times = []
    for _ in range(50):
        started = time.perf_counter()
        render_chats(with_template(template), CHATS[:1])
        times.append(time.perf_counter() - started)
    assert sorted(times)[10] < 0.01


def test_nothing_of_the_package_is_needed_there() -> None:
    """The process would otherwise import torch."""
    worker = Path(RENDERER.__class__.__module__.replace(".", "/"))
    source = (Path(__file__).parents[2] / "src" / worker / "worker.py").read_text()
    assert "import ptprune" not in source
    assert "from ptprune" not in source
    assert SECONDS < 10
