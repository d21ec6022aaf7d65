"""`normdet prepare`: images of a lab or hospital with their annotations, ready to train on."""

from normdet.medical.prepare.command import main

__all__ = ["main"]
