"""The most of everything that an option or a file may ask for: one place, so that no two commands differ.

A bound is what a model or a machine could still do something with, not what is sensible. Whatever is over it is refused
before anything is allocated.
"""

from __future__ import annotations

MAX_PIXELS = 89_478_485
"""Of a picture: Pillow's own limit for pictures that are not an attack. 256 MiB as RGB."""
MIN_SIDE = 4
"""Pixels: below that nothing is to be seen, and processors can take the colours for a side."""
MAX_PICTURES = 64
"""In one call of ``ptprune run``."""
MAX_TILES = 128
"""Of a picture, thumbnail not counted; published models are used with 40 at most."""
MAX_SIDE = 8192
"""Pixels a side of a tile, or of what a processor resizes pictures to."""
MAX_TOKENS = 1 << 20
"""Of a prompt or an answer; no published model has more positions."""
MAX_TEXT = 1 << 15
"""Tokens of a text of a measurement, beside a picture."""
MAX_BATCH = 1024
MAX_LAYERS = 1000
MAX_WINDOW = 4096
"""Tokens a side of a window."""
MAX_MARGIN = 1000
"""Of patches that pass the vision tower: so many times the tokens that stay."""
MAX_ROUNDS = 10_000
"""Of a measurement."""
MAX_SEED = 10**9 - 1
"""Of a drawn picture."""
MAX_ITEMS = 100_000
"""Questions of a set; pictures are numbered with five digits."""
MAX_RATIOS = 64
"""Keep ratios in one command."""
MAX_QUESTION = 1 << 16
"""Characters of a question."""
MAX_TEMPLATE = 1 << 18
"""Characters of a chat template."""
MAX_PROMPT = 1 << 22
"""Characters that a chat template may write."""
MAX_VALUE_BYTES = 16
"""Bytes of a number in a KV cache."""
