"""ptprune-tiny: a small InternVL-architecture model that ships with the package, and the scenes that it knows.

The checkpoint is an ordinary Hugging Face directory and needs nothing from here::

    AutoModelForImageTextToText.from_pretrained(ptprune.tiny.CHECKPOINT)
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Directory of the checkpoint: weights, configuration, tokenizer, image processor, chat template."""
