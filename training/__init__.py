"""The recipe of ptprune-tiny. ``python -m training --help``."""
