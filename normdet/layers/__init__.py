"""Normalization layers, one idea per file. They need torch alone, so any project can use them."""

from .activation import TLU, AddAct
from .adaptive_weight_standardization import AdaptiveWeightStandardization, standardize_adaptively
from .affine_batch_norm import AffineBatchNorm2d
from .attentive_norm import AttentiveBatchNorm, AttentiveNorm
from .base import NormLayer, after_step
from .batch_instance_norm import BatchInstanceNorm
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, FrozenBatchNorm2d, freeze_batch_norm
from .batch_renorm import BatchRenorm
from .batch_statistics import BatchStatistics
from .eval_norm import EvalNorm, to_eval_norm
from .evonorm import EvoNormB0, EvoNormS0
from .fixup import FixupScalars
from .frn import FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d
from .group_norm import GroupNorm, InstanceNorm, LayerNorm, groups_for
from .group_rms import GroupRMSNorm
from .inplace_abn import InPlaceABN
from .mabn import MovingAverageBatchNorm
from .mean_only_batch_norm import MeanOnlyBatchNorm
from .per_example import PerExampleNorm, StoredMoments, leave_stored
from .per_level import PerLevelNorm
from .reparametrized import Reparametrized, WeightMethod, reparametrize
from .scaled_weight_standardization import ScaledWeightStandardization, standardize_scaled
from .spectral_norm import SpectralNorm, spectral_norm
from .switch_norm import SwitchNorm
from .sync_batch_norm import SyncBatchNorm1d, SyncBatchNorm2d, SyncBatchNorm3d
from .weight_centralization import WeightCentralization, centralize
from .weight_norm import WeightNorm, weight_norm
from .weight_standardization import WeightStandardization, WSConv2d, standardize

__all__ = [
    "TLU",
    "AdaptiveWeightStandardization",
    "AddAct",
    "AffineBatchNorm2d",
    "AttentiveBatchNorm",
    "AttentiveNorm",
    "BatchInstanceNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm",
    "BatchStatistics",
    "EvalNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm1d",
    "FilterResponseNorm2d",
    "FilterResponseNorm3d",
    "FixupScalars",
    "FrozenBatchNorm2d",
    "GroupNorm",
    "GroupRMSNorm",
    "InPlaceABN",
    "InstanceNorm",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "MovingAverageBatchNorm",
    "NormLayer",
    "PerExampleNorm",
    "PerLevelNorm",
    "Reparametrized",
    "ScaledWeightStandardization",
    "SpectralNorm",
    "StoredMoments",
    "SwitchNorm",
    "SyncBatchNorm1d",
    "SyncBatchNorm2d",
    "SyncBatchNorm3d",
    "WSConv2d",
    "WeightCentralization",
    "WeightMethod",
    "WeightNorm",
    "WeightStandardization",
    "after_step",
    "centralize",
    "freeze_batch_norm",
    "groups_for",
    "leave_stored",
    "reparametrize",
    "spectral_norm",
    "standardize",
    "standardize_adaptively",
    "standardize_scaled",
    "to_eval_norm",
    "weight_norm",
]
