"""The page of ``ptprune app`` as a Hugging Face Space: the shipped model, and no other, for everybody."""

import time

from ptprune.app.models import Models
from ptprune.app.server import serving

if __name__ == "__main__":
    with serving(Models(), host="0.0.0.0", port=7860):
        while True:
            time.sleep(3600)
