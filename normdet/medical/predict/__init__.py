"""`normdet predict`: a trained detector on images of any kind, in tiles where they are large."""

from normdet.medical.predict.command import main

__all__ = ["main"]
