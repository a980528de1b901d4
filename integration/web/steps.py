"""What visitors do. Screenshots go to ``demo/web``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCENE, QUESTION = ROOT / "examples/scene.png", (ROOT / "examples/question.txt").read_text().strip()
SHOTS = ROOT / "demo/web"


def ask(page: Any, picture: Path, question: str) -> None:
    """Upload a picture and ask about it, without waiting for the answer."""
    upload(page, picture)
    page.fill("#question textarea, #question input", question)
    page.click("#ask")


def upload(page: Any, picture: Path) -> None:
    clear = page.locator("#picture button[aria-label='Clear'], #picture button[title='Clear']")
    if clear.count():
        clear.first.click()
    page.set_input_files("#picture input[type=file]", picture)
    page.wait_for_selector("#picture img, #note .ptp-trouble")


def answered(page: Any) -> None:
    """Wait for the end of an answer."""
    page.wait_for_function("document.querySelector('#note .ptp-note').innerText.includes('Move the slider')")


def slide(page: Any, ratio: float) -> None:
    """Move the slider and wait until the tokens are chosen again."""
    before = page.inner_text("#note .ptp-note")
    number = page.locator("#ratio input[type=number]")
    number.fill(str(ratio))
    number.press("Enter")
    page.wait_for_function("before => document.querySelector('#note .ptp-note').innerText != before", arg=before)


def budget(page: Any) -> int:
    """Tokens kept, by the table of budgets."""
    return sum(int(text.partition("/")[0]) for text in page.locator(".ptp-budgets td").all_inner_texts() if text)
