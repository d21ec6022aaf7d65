"""COCO AP, of images taken whole or in tiles.

Tiles are here and not with the medical readers: `INPUT.TILE` evaluates training runs in tiles, and
the plugin must not depend on `medical`.
"""

from normdet.evaluation.coco import build_evaluator

__all__ = ["build_evaluator"]
