"""`normdet prepare`: make annotated images of a lab or hospital ready to train on."""

from normdet.medical.prepare.command import main

__all__ = ["main"]
