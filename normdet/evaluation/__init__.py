"""COCO AP, of images taken whole or in tiles.

Tiles are here and not with the medical readers: `INPUT.TILE` evaluates a training run in them, and
the plugin must not need a wing for it.
"""

from normdet.evaluation.coco import build_evaluator

__all__ = ["build_evaluator"]
