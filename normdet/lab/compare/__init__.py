"""Which norm for my data: trained norms side by side, with statistics worth trusting."""

from normdet.lab.compare.command import main

__all__ = ["main"]
