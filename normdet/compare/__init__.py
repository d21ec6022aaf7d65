"""Which norm for my data: trained norms side by side, with statistics worth trusting."""

from normdet.compare.command import main

__all__ = ["main"]
