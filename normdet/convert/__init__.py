"""Give a trained network another norm and keep what it learned: `normdet convert`, and functions.

There are four rungs, each better and slower than the one before: the closed form
(:mod:`.closed_form`), calibration on images (:mod:`.calibrate`), distillation (:mod:`.distill`) and
annealing during fine-tuning (:func:`normdet.layers.per_example.leave_stored`).
"""

from .command import main
from .run import Conversion, Settings, convert

__all__ = ["Conversion", "Settings", "convert", "main"]
