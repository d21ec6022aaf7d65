"""Caffe2's blobs: Detectron's models and the ImageNet weights they start from."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor

from normdet.errors import NormdetError
from normdet.weights.facts import BACKBONE, FAIR_GN, FAIR_X101, MSRA, Facts

from .layout import CLASSIFIER, Imported


def is_caffe2(state: Mapping[str, Any]) -> bool:
    """Whether the names are blobs' (`res2_0_branch2a_w`)."""
    return "conv1_w" in state or any(key.startswith("res2_0_branch") for key in state)


def convert(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str) -> Imported:
    """Rename blobs by detectron2's own table; Detectron's classes also start with the background.

    Raises:
        NormdetError: two blobs get the same name.
    """
    blobs = {key: value for key, value in state.items() if not key.endswith("_momentum")}
    try:
        model, originals = convert_c2_detectron_names(blobs)
    except (AssertionError, IndexError, ValueError) as error:  # raised on other names
        raise NormdetError(f"{source}: its blobs are not Detectron's: {error}") from error
    left_out = {
        originals[key]: CLASSIFIER for key in list(model) if key.startswith(("linear.", "fc1000."))
    }
    model = {key: value for key, value in model.items() if originals[key] not in left_out}
    return Imported(model, _facts(state), "Caffe2 (Detectron)", left_out, partial=True)


def _facts(blobs: Mapping[str, Tensor]) -> Facts:
    """The norm, read off its blobs' names, and the conventions of the files that have it."""
    if any(key.endswith("_gn_s") for key in blobs):
        family, shown = FAIR_GN, "GN"
    elif any(key.endswith("_bn_s") for key in blobs):
        inner = blobs.get("res2_0_branch2b_w")
        grouped = inner is not None and inner.dim() > 1 and inner.shape[0] != inner.shape[1]
        family, shown = (FAIR_X101 if grouped else MSRA), "BN"
    else:
        return Facts()
    return replace(family, norms={}, shown={BACKBONE: shown}, assumed=tuple(family.settings))
