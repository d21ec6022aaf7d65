"""ResNets of torchvision, timm, JHU's weight standardization and mmcv: they share one naming.

The names show neither the library nor how the weights were trained. All four have their stride in
the 3x3 convolution.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from normdet.errors import NormdetError
from normdet.weights.facts import (
    BACKBONE,
    MSRA,
    STRIDE,
    TORCHVISION,
    Facts,
    blocks,
    depth,
    shown_norms,
    takes_raw_pixels,
)

from .layout import CLASSIFIER, Imported, Rules, rename

# mmcv calls its group norms gn.
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_RULES = (
    (r"conv1\.weight", "stem.conv1.weight"),
    (rf"(?:bn|gn)1\.{_NORM}", r"stem.conv1.norm.\1"),
    (r"layer([1-4])\.(\d+)\.(conv[1-3]\.weight)", lambda m: f"{_stage(m)}.{m[2]}.{m[3]}"),
    (
        rf"layer([1-4])\.(\d+)\.(?:bn|gn)([1-3])\.{_NORM}",
        lambda m: f"{_stage(m)}.{m[2]}.conv{m[3]}.norm.{m[4]}",
    ),
    (
        r"layer([1-4])\.(\d+)\.downsample\.0\.weight",
        lambda m: f"{_stage(m)}.{m[2]}.shortcut.weight",
    ),
    (
        rf"layer([1-4])\.(\d+)\.downsample\.1\.{_NORM}",
        lambda m: f"{_stage(m)}.{m[2]}.shortcut.norm.{m[3]}",
    ),
)
_CLASSIFIER = re.compile(r"(fc|head|classifier)\.")

# Names of tensors that detectron2's ResNets do not have, and what they belong to. The first match
# counts.
_OTHERS = (
    (r"conv1\.\d|stem\.", "a stem of several convolutions"),
    (r".*\.se\.", "squeeze and excitation"),
    (r".*\.(eca|gc|attn)\.", "attention in its blocks"),
    (r".*\.conv_offset", "deformable convolutions"),
    (r".*\.conv[123]\.(?!weight|bias)", "attention in its convolutions"),
    (r".*\.downsample\.2\.", "average pooling in its shortcuts"),
    (r".*\.aa\.|.*filt", "anti-aliased pooling"),
    (r".*\.weight_(gamma|beta)", "mmcv's adaptive weight standardization"),
)
_BLURRED = re.compile(r"\b(se|eca)?resne[xs]?t(blur|aa)\d+\w*")


def _stage(match: re.Match) -> str:
    return f"res{int(match[1]) + 1}"


def is_resnet(state: Mapping[str, Any]) -> bool:
    """Whether tensors are named as in torchvision's ResNets (`layer1.0.conv1.weight`)."""
    return any(key.startswith("layer1.0.conv") for key in _bare(state))


def convert(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str) -> Imported:
    """A ResNet without the layers behind it.

    Raises:
        NormdetError: it has layers that detectron2's ResNets lack, or another number of blocks.
    """
    # These have the tensors of the plain ResNet; only the file's name shows the difference.
    if named := _BLURRED.search(f"{source} {checkpoint.get('arch', '')}"):
        raise NormdetError(
            f"{source} is a {named[0]}, with anti-aliased pooling, which detectron2's ResNet does "
            "not have: nothing is loaded"
        )
    model, left_out = resnet_tensors(_bare(state), source)
    return Imported(
        model, resnet_facts(model), "torchvision, timm or mmcv ResNet", left_out, partial=True
    )


def resnet_tensors(
    state: Mapping[str, Tensor], source: str, prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A ResNet's tensors under `prefix` and detectron2's names; and those left out, with reasons.

    Raises:
        NormdetError: as :func:`convert`.
    """
    model, left_out = {}, {}
    for key, value in state.items():
        if (name := rename(key, _RULES)) is not None:
            model[prefix + name] = value
        elif _CLASSIFIER.match(key):
            left_out[key] = CLASSIFIER
        else:
            what = next((what for pattern, what in _OTHERS if re.match(pattern, key)), None)
            raise NormdetError(
                f"{source} is a ResNet with {what or 'more than the plain one'} (its {key}), which "
                "detectron2's does not have: nothing is loaded"
            )
    stages = blocks(model)
    if all(stages) and depth(model) is None:
        raise NormdetError(
            f"{source} is a ResNet with stages of {', '.join(map(str, stages))} blocks, which is "
            "none of detectron2's (18, 34, 50, 101, 152): nothing is loaded"
        )
    return model, left_out


def detector_tensors(
    state: Mapping[str, Tensor], source: str, backbone: str, rules: Rules
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A detector's tensors under detectron2's names; and those left out, with reasons.

    Args:
        state: tensors by the file's names.
        source: the file's name for messages.
        backbone: the prefix of its ResNet's names.
        rules: for all other names.

    Raises:
        NormdetError: as :func:`convert`.
    """
    body = {k.removeprefix(backbone): v for k, v in state.items() if k.startswith(backbone)}
    model, out = resnet_tensors(body, source, "backbone.bottom_up.")
    left_out = {backbone + key: why for key, why in out.items()}
    for key, value in state.items():
        if key.startswith(backbone):
            continue
        if (name := rename(key, rules)) is None:
            left_out[key] = "this part has no exact counterpart in detectron2"
        else:
            model[name] = value
    return model, left_out


def resnet_facts(model: Mapping[str, Tensor]) -> Facts:
    """Facts that the tensors of such a ResNet show, and those that are usual for one."""
    norm = shown_norms(model).get(BACKBONE)
    if norm is None:  # the file has no statistics
        affine = any(key.endswith(".norm.weight") for key in model)
        return Facts(
            shown={BACKBONE: "GN"} if affine else {}, settings={STRIDE: False}, assumed=(STRIDE,)
        )
    raw = takes_raw_pixels(model)
    # Pixels of 0 to 255 usually go with Caffe's other conventions: the network is often MSRA's.
    usual = MSRA if raw else TORCHVISION
    assumed = tuple(usual.settings)
    return replace(usual, norms={}, shown={BACKBONE: norm}, assumed=assumed, raw_pixels=raw)


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by their names without mmcv's prefix `backbone.`."""
    if any(key.startswith("layer1.") for key in state):
        return dict(state)
    return {key.removeprefix("backbone."): value for key, value in state.items()}
