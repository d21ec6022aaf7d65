"""Names of other libraries' backbones, turned into detectron2's."""

import re
from collections.abc import Mapping
from typing import Any

# torchvision's and mmcv's ResNets; mmcv calls its group norms gn.
_RENAMES = (
    (r"^(?:backbone\.)?(?=(?:conv1|bn1|gn1|layer\d|fc)\.)", ""),
    (r"^conv1\.", "stem.conv1."),
    (r"^(?:bn|gn)1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.(?:bn|gn)(\d)\.", r".conv\1.norm."),
)


def is_torchvision_resnet(state: Mapping[str, Any]) -> bool:
    """Whether tensors are named as in torchvision's ResNets (`layer1.0.conv1.weight`)."""
    return any(key.removeprefix("backbone.") == "layer1.0.conv1.weight" for key in state)


def rename_torchvision_resnet(state: Mapping[str, Any]) -> dict[str, Any]:
    """A torchvision or mmcv ResNet's tensors under detectron2's names, without the classifier."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        if not key.startswith("fc."):
            renamed[key] = value
    return renamed
