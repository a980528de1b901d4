"""The recipe, stage by stage. Each stage continues where it stopped: run the same command again.

python -m training vision     stage A: vision tower and projector
python -m training language   stage B: the language model on frozen vision
python -m training joint      stage C: everything together
python -m training worlds     stage D: on to all worlds; minutes on a GPU
python -m training counting   stage E: counts that do not depend on the background
python -m training            all of these
"""

from __future__ import annotations

import argparse
from dataclasses import fields

import torch

from .stage_counting import Counting, train_counting
from .stage_worlds import Options, train_worlds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__.splitlines()[0])
    stages = ["vision", "language", "joint", "worlds", "counting", "all"]
    parser.add_argument("stage", nargs="?", default="all", choices=stages)
    parser.add_argument("--steps", type=int, help="steps of this stage in all (the decay fits itself to them)")
    parser.add_argument("--threads", type=int, default=2)
    worlds = parser.add_argument_group("stage worlds")
    defaults = Options()
    for field in fields(Options):
        value = getattr(defaults, field.name)
        worlds.add_argument(f"--{field.name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {} if arguments.steps is None else {"steps": arguments.steps}
    if arguments.stage in ("vision", "all"):
        from .stage_vision import train_vision

        train_vision(**options)
    if arguments.stage in ("language", "all"):
        from .stage_language import train_language

        train_language(**options)
    if arguments.stage in ("joint", "all"):
        from .stage_language import train_jointly

        train_jointly(**options)
    if arguments.stage in ("worlds", "all"):
        train_worlds(Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)}))
    if arguments.stage in ("counting", "all"):
        train_counting(Counting(**options))


if __name__ == "__main__":
    main()
