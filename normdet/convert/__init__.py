"""Give a trained network another norm and keep what it learned: `normdet convert`, and functions.

Rungs, each better and dearer than the one before: the closed form (:mod:`.closed_form`), calibrated
on images (:mod:`.calibrate`), distilled (:mod:`.distill`), and annealed while it is fine-tuned
(:func:`normdet.layers.per_example.leave_stored`).
"""

from .command import main
from .run import Conversion, Settings, convert

__all__ = ["Conversion", "Settings", "convert", "main"]
