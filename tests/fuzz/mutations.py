"""Valid files made wrong in a few places, and values that nobody expects."""

from __future__ import annotations

import copy
import random
import struct
from typing import Any

NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
]
WORDS = ["", " ", "\0", "\n", "\x1b[2J", "../x", "/etc/passwd", "org/kernel", "<|end|>", "{{ 7*7 }}", "é😀", "x" * 5000]
VALUES = [*NUMBERS, *WORDS, None, True, False, [], {}, [[]], [None], {"a": {"b": [1]}}, [1, 2], ["a"] * 50]
KEYS = ["auto_map", "_attn_implementation", "dtype", "model_type", "architectures", "quantization_config", "x", ""]


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, removed, doubled or set, the end cut off, or a number of two or four bytes replaced."""
    wrong = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        if not wrong:
            break
        # headers decide more than pixels do
        at = chance.randrange(min(len(wrong), chance.choice([16, 64, 256, len(wrong)])))
        match chance.randrange(7):
            case 0:
                wrong[at] ^= 1 << chance.randrange(8)
            case 1:
                wrong[at] = chance.choice([0, 1, 127, 128, 255])
            case 2:
                del wrong[at : at + chance.choice([1, 4, 100])]
            case 3:
                wrong[at:at] = wrong[at : at + chance.choice([1, 4, 100])]
            case 4:
                del wrong[at:]
            case 5:
                number = chance.choice([0, 1, 3, 16, 200, 30000, 65535, 2**24, 2**31 - 1, 2**32 - 1])
                form = chance.choice(["<H", ">H", "<I", ">I"])
                piece = struct.pack(form, number & (0xFFFF if "H" in form else 0xFFFFFFFF))
                wrong[at : at + len(piece)] = piece
            case _:
                wrong[at:at] = chance.randbytes(chance.choice([1, 8]))
    return bytes(wrong)


def of_json(document: Any, chance: random.Random) -> Any:
    """A few values replaced, removed, renamed, doubled or moved."""
    wrong = copy.deepcopy(document)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        holders = [one for one in _holders(wrong) if one]
        if not holders:
            break
        holder = chance.choice(holders)
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))
            case 2 if isinstance(holder, dict):
                holder[chance.choice(list(holder))] = holder[key] if not isinstance(holder[key], dict | list) else 3
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = chance.choice([holder[key] * 1000, -holder[key], holder[key] + 1, holder[key] / 2])
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    return wrong


def _holders(document: Any) -> list[Any]:
    """Every object and list."""
    found = [document] if isinstance(document, dict | list) else []
    for holder in found:
        found += [
            one for one in (holder.values() if isinstance(holder, dict) else holder) if isinstance(one, dict | list)
        ]
    return found
