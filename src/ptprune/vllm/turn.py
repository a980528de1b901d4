"""Which text counts as an image's instruction: the text of the turn that holds it. Knows token ids only.

A turn ends where the model's answer begins. A later question about the same picture therefore leaves the picture's
tokens, and every cache of them, as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptprune.errors import SettingError
from ptprune.templates import render_chats


@dataclass(frozen=True)
class ImageText:
    """The text around one image, other images left out.

    Attributes:
        before, after: token ids; ``after`` ends with the turn.
        num_instruction: how many of ``after``, the last ones, are the instruction: the text after the turn's last
            visual token.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    num_instruction: int = 0

    @property
    def instruction_alone(self) -> ImageText:
        """For scores that need no other text, which then does not count in the caches either."""
        return ImageText((), self.after[len(self.after) - self.num_instruction :], self.num_instruction)


def texts_around(
    prompt: Sequence[int], visual: Sequence[range], images: Sequence[range], answer: Sequence[int]
) -> list[ImageText]:
    """The text around each image of a prompt.

    Args:
        prompt: token ids, with any number of placeholders for each image and video.
        visual: where the placeholders of all images and videos stand, in prompt order.
        images: those of the images.
        answer: token ids with which an answer begins; empty: the prompt counts as one turn.
    """
    hidden = {column for span in visual for column in span}
    texts = []
    for image in images:
        end = _turn_end(prompt, image.stop, answer)
        last = max(column for column in hidden if column < end)
        before = [prompt[i] for i in range(image.start) if i not in hidden]
        after = [prompt[i] for i in range(image.stop, end) if i not in hidden]
        texts.append(ImageText(tuple(before), tuple(after), end - last - 1))
    return texts


def _turn_end(prompt: Sequence[int], start: int, answer: Sequence[int]) -> int:
    """The index behind the first beginning of an answer, from ``start`` on, else the prompt's length."""
    size = len(answer)
    begins = (i for i in range(start, len(prompt) - size + 1) if size and [*prompt[i : i + size]] == [*answer])
    return next((index + size for index in begins), len(prompt))


def answer_start(tokenizer: object) -> list[int]:
    """Token ids with which an answer begins in the tokenizer's chat template; empty where it does not say."""
    chats = [[{"role": "user", "content": "?"}]]
    try:
        [asked], [answered] = (render_chats(tokenizer, chats, answer=answer) for answer in (False, True))
    except SettingError:  # none, or one that cannot be used: vLLM says so where it needs it
        return []
    opening = answered[len(asked) :] if answered.startswith(asked) else ""
    return list(tokenizer.encode(opening, add_special_tokens=False)) if opening else []  # type: ignore[attr-defined]
