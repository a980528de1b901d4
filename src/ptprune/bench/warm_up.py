"""The first run of each arm, which is not measured: it initialises kernels and buffers, and tells what stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ptprune.bench.arms import Arm, kept_length, run_arm
from ptprune.bench.encoders import as_fewer, check_encoded, counted_tiles
from ptprune.bench.encodings import FEWER, RANDOM, SALIENT
from ptprune.bench.subject import Setup, Subject
from ptprune.errors import BrokenPass
from ptprune.report import ImageReport

WARM_UP_TOKENS = 2
Say = Callable[[str], None]


@dataclass(frozen=True)
class Warm:
    """What the warm-up of a pruned arm tells about every later run of it.

    Attributes:
        image: of the first prompt.
        length: tokens of a prompt behind the cut, text included.
        other: tokens of a prompt that are not visual.
        tiles: of a prompt, that the vision tower encoded; None where pictures are not encoded as tiles.
    """

    image: ImageReport
    length: int
    other: int
    tiles: int | None


def warm_up(setup: Setup, subject: Subject, arm: Arm, say: Say) -> None:
    """Run an arm once."""
    say(f"warming up: {arm.label}")
    run_arm(subject, arm, WARM_UP_TOKENS, setup.device)


def warm_up_pruned(setup: Setup, subject: Subject, arms: Sequence[Arm], say: Say) -> tuple[list[Arm], dict[str, Warm]]:
    """Run each pruned arm once, after those that tell what it has to encode.

    Returns:
        The arms, complete, in the same order; label -> what its run tells.

    Raises:
        BrokenPass: where an arm does not encode what it should.
    """
    warm: dict[str, Warm] = {}
    done: list[Arm] = []
    for arm in sorted(arms, key=lambda arm: arm.encoder in (RANDOM, FEWER)):
        like = warm.get(replace(arm, encoder=SALIENT).label)
        if arm.encoder == FEWER and like is not None:
            arm = as_fewer(arm, like.image, setup, subject)
        with counted_tiles(subject.model) as rows:
            warm_up(setup, subject, arm, say)
        assert arm.pruner is not None
        assert (report := arm.pruner.report) is not None
        tiles, image = check_encoded(arm, report.images, rows), report.images[0]
        if arm.encoder == RANDOM and like is not None and like.image.encoded_tiles != image.encoded_tiles:
            raise BrokenPass(
                f"{arm.label}: {image.encoded_tiles} tiles were encoded, but {like.image.encoded_tiles} salient ones"
            )
        other = report.sequence_length[0][0] - image.num_tokens
        warm[arm.label] = Warm(image, kept_length(arm.pruner), other, tiles)
        done.append(arm)
    order = [arm.label for arm in arms]
    return sorted(done, key=lambda arm: order.index(arm.label)), warm
