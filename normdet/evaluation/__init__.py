"""COCO AP of a model on any registered dataset."""

from normdet.evaluation.coco import build_evaluator

__all__ = ["build_evaluator"]
