"""Weight files of other libraries under detectron2's names, with the facts about them.

There is one file per layout, and one table of layouts. A layout is recognised by its names.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from normdet.errors import NormdetError
from normdet.layers.reparametrized import present_name
from normdet.weights.facts import (
    BACKBONE,
    Facts,
    is_folded,
    published_facts,
    read_description,
    shown_norms,
)
from normdet.weights.files import UnreadableFileError
from normdet.weights.integrity import check_tensor

from . import caffe2, mmdetection, resnets, torchvision_detectors
from .layout import CLASSIFIER, Imported, Layout

# The first layout that matches counts. If none does, the names are detectron2's or unknown.
LAYOUTS = (
    Layout(caffe2.is_caffe2, caffe2.convert),
    Layout(torchvision_detectors.is_torchvision_detector, torchvision_detectors.convert),
    Layout(mmdetection.is_mmdetection, mmdetection.convert),
    Layout(resnets.is_resnet, resnets.convert),
)


def unwrap(loaded: dict[str, Any], source: str) -> dict[str, Any]:
    """Bring a file's content to the form `{"model": tensors by name, ...}`.

    Half-precision weights become float32, so that loading computes with full precision.

    Raises:
        UnreadableFileError: the expected place holds no tensors.
    """
    for key in ("model", "model_state", "state_dict", "blobs"):
        if key in loaded:
            # A key of this name must hold the weights.
            checkpoint = {**{k: v for k, v in loaded.items() if k != key}, "model": loaded[key]}
            break
    else:
        checkpoint = {"model": loaded}
    checkpoint["model"] = _as_tensors(checkpoint["model"], source)
    return checkpoint


def import_weights(checkpoint: Mapping[str, Any], source: str) -> Imported:
    """Recognise a file's layout and give its tensors detectron2's names.

    Args:
        checkpoint: tensors by name, or a checkpoint that has them under `"model"`.
        source: path or URL as the user gave it.

    Raises:
        NormdetError: the file is of a network that detectron2 cannot build, or its tensors have
            shapes that no file of its layout has.
    """
    state = checkpoint.get("model", checkpoint)
    if state and all(key.startswith("module.") for key in state):
        stripped = {key.removeprefix("module."): value for key, value in state.items()}
        state = _with_versions(stripped, state)
    layout = next((layout for layout in LAYOUTS if layout.recognises(state)), None)
    try:
        imported = layout.convert(state, checkpoint, source) if layout else _own(state)
        imported.facts = _complete(imported, checkpoint, source)
    except NormdetError:
        raise
    # A tensor of an unexpected rank, size or type raises these.
    except (IndexError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise NormdetError(
            f"{source}: its tensors have shapes or types that its layout does not have: "
            + " ".join(str(error).split())
        ) from error
    if checkpoint.get("matching_heuristics") is True:
        imported.partial = True
    return imported


_OWN_NAMES = ("backbone.", "proposal_generator.", "roi_heads.", "stem.conv1.", "res2.")


def _own(state: Mapping[str, torch.Tensor]) -> Imported:
    """detectron2's own names. Its conversions of torchvision's files call `fc` `stem.fc`."""
    classifier = ("stem.fc.", "linear.", "backbone.bottom_up.linear.")
    left_out = {key: CLASSIFIER for key in state if key.startswith(classifier)}
    model = {key: value for key, value in state.items() if key not in left_out}
    known = any(key.startswith(_OWN_NAMES) for key in model)
    layout = "detectron2" if known else "not known"
    return Imported(_with_versions(model, state), layout=layout, left_out=left_out)


def _complete(imported: Imported, checkpoint: Mapping[str, Any], source: str) -> Facts:
    """The facts, from the file itself, its published name or its layout, and from its tensors."""
    theirs = imported.facts
    if (said := checkpoint.get("normdet")) is not None:
        known = read_description(said, source)
    else:
        published = published_facts(source, str(checkpoint.get("__author__", "")))
        stated = theirs.settings.keys() - set(theirs.assumed)
        known = theirs if (theirs.norms and stated) or published is None else published
        if known is published:  # a detector's own keys are not in the table
            more = {k: v for k, v in theirs.settings.items() if k not in known.settings}
            more = {k: v for k, v in more.items() if k.startswith(("MODEL.R", "MODEL.A"))}
            known = replace(
                known, settings={**more, **known.settings},
                assumed=tuple(key for key in theirs.assumed if key in more),
            )  # fmt: skip
    shown = {**shown_norms(imported.model), **theirs.shown}
    norm = known.norms.get(BACKBONE, shown.get(BACKBONE, "BN"))
    return replace(known, shown=shown, folded=is_folded(imported.model, norm))


def _as_tensors(weights: Any, source: str) -> dict[str, torch.Tensor]:
    """Check that `weights` are tensors by name, numpy's included."""
    if not isinstance(weights, dict):
        raise UnreadableFileError(
            f"{source} has a {type(weights).__name__} where tensors should be"
        )
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            value = torch.as_tensor(value)
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            raise UnreadableFileError(
                f"{source}: {name!r} is a {type(value).__name__}, not a tensor"
            )
        try:
            check_tensor(name, value)
        except NormdetError as error:
            raise UnreadableFileError(f"{source} is refused, its tensor {error}") from error
        tensors[present_name(name)] = value.float() if _is_narrow(value) else value
    return _with_versions(tensors, weights)


def _is_narrow(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < 4


def _with_versions(tensors: dict[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors` with the layers' versions of `state`, by which old files are upgraded."""
    if hasattr(state, "_metadata"):
        tensors = OrderedDict(tensors)
        tensors._metadata = state._metadata
    return tensors


__all__ = ["CLASSIFIER", "LAYOUTS", "Imported", "Layout", "import_weights", "unwrap"]
