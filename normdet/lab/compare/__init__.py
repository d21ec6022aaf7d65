"""Compare norms on the user's data by training them side by side, with sound statistics."""

from normdet.lab.compare.command import main

__all__ = ["main"]
