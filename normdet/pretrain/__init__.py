"""`normdet pretrain`: a detector's backbone trained on a folder of labelled images."""

from .command import main

__all__ = ["main"]
