"""The most tiles a picture is cut into, in the words of each family's image processor."""

from __future__ import annotations

from typing import Any

from ptprune.errors import SettingError

# An option that only image processors of that kind have -> why the number of tiles is no choice there.
REASONS = {
    "image_grid_pinpoints": "its tile grids are listed in the checkpoint's configuration",
    "do_image_splitting": "its tiles follow from the picture's size",
    "merge_size": "it has no tiles, it reads a picture at its own size",
}


def tile_options(family: str, processor: Any, max_tiles: int | None) -> dict[str, Any]:
    """What the image processor is to be called with so that it cuts a picture into at most ``max_tiles`` tiles.

    Args:
        family: its name.
        max_tiles: thumbnail not counted; None leaves the checkpoint's own choice.

    Raises:
        SettingError: where the family has no such choice.
    """
    if max_tiles is None:
        return {}
    known = processor.image_processor.valid_kwargs.__annotations__
    if "max_patches" in known:
        return {"crop_to_patches": True, "max_patches": max_tiles}
    if "pan_and_scan_max_num_crops" in known:  # off unless asked for; a single crop would show the thumbnail again
        return {"do_pan_and_scan": max_tiles > 1, "pan_and_scan_max_num_crops": max_tiles}
    reason = next((why for option, why in REASONS.items() if option in known), "its image processor cannot do that")
    raise SettingError(f"max_tiles {max_tiles}: not with {family}: {reason}; leave it out")
