"""``python -m ptprune`` is the command ``ptprune``."""

from ptprune.cli import main

if __name__ == "__main__":
    main()
