"""Count a detector's multiply-adds for an image by part, with fvcore, extended by our operators."""

import copy
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from detectron2.utils.analysis import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

from .describe import TITLES, part_of

# Multiply-adds per element: fvcore counts 4 for a norm and 1 more for its affine. FRN has no mean.
_AN_ELEMENT = {"group": 4, "deviation": 4, "rms": 3}


def _norm_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """The count of `normdet::norm_act`; the activation is free, as fvcore counts ReLU."""
    affine = get_shape(inputs[2]) is not None
    return prod(get_shape(inputs[0])) * (_AN_ELEMENT[inputs[6].toIValue()] + affine)


def _point_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """The count of `normdet::point_act`: fvcore's for a batch norm's affine; additions are free."""
    return prod(get_shape(inputs[0])) * (2 if get_shape(inputs[2]) is not None else 0)


class FlopCount(FlopCountAnalysis):
    """detectron2's `FlopCountAnalysis`, which counts our operators as fvcore does torch's norms.

    Args:
        model: a detector in inference mode; a copy of it is traced.
        inputs: a batch for it.
    """

    def __init__(self, model: nn.Module, inputs: list[dict]):
        model = copy.deepcopy(model)
        for module in model.modules():
            if hasattr(module, "backend"):  # "auto" would leave torch's operators in a trace
                module.backend = "eager"
        super().__init__(model, inputs)
        self.set_op_handle("normdet::norm_act", _norm_flops)
        self.set_op_handle("normdet::point_act", _point_flops)
        self.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        self.tracer_warnings("none")


@dataclass
class PartFlops:
    """A part of a detector and its multiply-adds for one image, by operator."""

    part: str
    flops: Counter


def flops_by_part(model: nn.Module, inputs: list[dict]) -> list[PartFlops]:
    """The multiply-adds of every part of a detector for a batch, in the order data flows.

    The count of heads on regions depends on how many boxes the image gives.
    """
    found = {title: Counter() for title in TITLES}
    by_module = FlopCount(model, inputs).by_module_and_operator()
    for name, counts in by_module.items():
        if name.partition(".")[0] != "model":  # the tracing adapter around the model
            continue
        name = name.partition(".")[2]
        own = Counter(counts)
        for child, inner in by_module.items():
            parent, _, last = child.rpartition(".")
            if last and parent == f"model.{name}".rstrip("."):
                own.subtract(inner)
        found[part_of(name)].update(own)
    return [PartFlops(title, +counts) for title, counts in found.items() if +counts]
