"""`normdet predict`: run a trained detector on images of any kind, large ones in tiles."""

from normdet.medical.predict.command import main

__all__ = ["main"]
