"""Normalization layers, one idea a file. Needs torch alone: use them in any project."""

from .activation import TLU, AddAct
from .base import NormLayer
from .batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    FrozenBatchNorm2d,
    freeze_batch_norm,
)
from .frn import FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d
from .group_norm import GroupNorm, InstanceNorm, LayerNorm, groups_for
from .sync_batch_norm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d
from .weight_standardization import WeightStandardization, WSConv2d, standardize

__all__ = [
    "TLU",
    "AddAct",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FilterResponseNorm1d",
    "FilterResponseNorm2d",
    "FilterResponseNorm3d",
    "FrozenBatchNorm2d",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "NormLayer",
    "SyncBatchNorm1d",
    "SyncBatchNorm2d",
    "SyncBatchNorm3d",
    "WSConv2d",
    "WeightStandardization",
    "freeze_batch_norm",
    "groups_for",
    "standardize",
]
