"""The world of ptprune-tiny in words: what can be in a scene, and which part of each source belongs to which split."""

from __future__ import annotations

TILE = 64
"""Side of a tile in pixels. A scene of c x r tiles is exactly c*64 x r*64 pixels large."""

COLOURS: dict[str, tuple[float, float, float]] = {  # hue in degrees, saturation, value
    "red": (356, 0.90, 0.95),
    "orange": (27, 0.95, 1.00),
    "yellow": (56, 0.90, 1.00),
    "green": (122, 0.85, 0.80),
    "cyan": (182, 0.75, 0.98),
    "blue": (222, 0.80, 1.00),
    "purple": (288, 0.70, 0.95),
    "white": (0, 0.00, 1.00),
}
DIGITS = tuple("0123456789")
LETTERS = tuple("ACEFHJKLMNPRTUXY")  # those that no digit and no other letter of the list resembles
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
KINDS = ("digit", "letter", "shape")
NAMES = {"digit": DIGITS, "letter": LETTERS, "shape": SHAPES}

KEYS = (
    "ant", "bag", "bed", "box", "bus", "cab", "cow", "cup", "dog", "ear", "egg", "elk", "eye", "fan", "fig",
    "fly", "fur", "gem", "ham", "hen", "hut", "ice", "ink", "jet", "kit", "leg", "lid", "map", "mud", "oak",
    "oil", "pea", "pie", "pot", "rat", "rug", "saw", "sky", "sun", "toy", "wax", "web", "zip", "arm", "axe",
    "dew", "gas", "hop", "ivy", "orb", "rim", "sod", "tin", "tub", "urn", "zoo", "gnu", "emu", "eel", "asp",
)  # fmt: skip
"""Words of documents. Any two differ in at least two of their three letters."""
VALUES = tuple(str(number) for number in range(10, 100))
"""Numbers of documents."""

SPLITS = ("train", "dev", "test")

# Handwritten digits: contiguous ranges of scikit-learn's load_digits, so that writers hardly overlap.
DIGIT_RANGE = {"train": (0, 1300), "dev": (1300, 1500), "test": (1500, 1797)}

# Fonts: the files that matplotlib ships.
FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSerif",
        "DejaVuSerif-Bold",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "STIXGeneral",
        "STIXGeneralBolIta",
        "cmr10",
        "cmss10",
    ),
    "dev": ("DejaVuSansMono-Oblique", "STIXGeneralBol", "cmtt10"),
    "test": ("DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "cmb10"),
}

# Fonts of documents: those of the letters, and in training three more cuts.
PRINT = {
    "train": (*FONTS["train"], "DejaVuSansMono-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralItalic"),
    "dev": FONTS["dev"],
    "test": FONTS["test"],
}

# Photographs: only those of scikit-image that are CC0 or in the public domain (training/README.md names the owners).
PHOTOGRAPHS = {
    "train": ("astronaut.png", "coffee.png", "camera.png", "hubble_deep_field.jpg"),
    "dev": ("rocket.jpg",),
    "test": ("chelsea.png",),
}
TEXTURES = {"train": ("brick.png", "moon.png"), "dev": ("grass.png",), "test": ("gravel.png",)}


class MissingExtra(ImportError):
    """A library that only the scene generator needs is not installed."""

    def __init__(self, library: str, what: str) -> None:
        super().__init__(f"drawing scenes needs {library} for {what}; install the extra: pip install 'ptprune[scenes]'")


def check_split(split: str) -> None:
    """Raises ValueError for a split that there is not."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
