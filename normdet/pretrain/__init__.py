"""`normdet pretrain`: train a detector's backbone on a folder of labelled images."""

from .command import main

__all__ = ["main"]
