"""Batch Normalization (Ioffe and Szegedy, 1502.03167) and its frozen form."""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import frozen_bn_act, scripted
from ..ops.reference import frozen_affine
from ..option_text import FROZEN, with_norm
from .base import NormLayer
from .batch_statistics import BatchStatistics


class _BatchNorm(BatchStatistics):
    """torch's BatchNorm with a fused activation, which tools that look for torch's class find."""

    tests_as_bn = True
    scriptable = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        activation: str | None = None,
        **kwargs,
    ):
        super().__init__(num_features, eps=eps, momentum=momentum, **kwargs)
        self._init_activation(num_features, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                self.momentum, self.eps,
            )  # fmt: skip
            return scripted.activate(y, self.tau, self.activation)
        else:
            return BatchStatistics.forward(self, x)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        # A worker whose images have no region runs its heads on an empty batch.
        if x.numel() == 0:
            return frozen_bn_act(
                x, self.weight, self.bias, self.running_mean, self.running_var, eps=self.eps
            )
        if self.training and x.numel() == self.num_features:
            self.refuse_one_value(x)
        return nn.modules.batchnorm._BatchNorm.forward(self, x)

    def frozen(self) -> nn.Module:
        """The frozen form: fixed averages and a fixed affine."""
        frozen = FrozenBatchNorm2d(self.num_features, self.eps, self.activation)
        frozen.num_batches_tracked = self.num_batches_tracked
        frozen.load_state_dict(self.state_dict())
        if hasattr(self, "option"):
            frozen.option = with_norm(self.option, FROZEN)
        if frozen.tau is not None:
            frozen.tau.requires_grad = self.tau.requires_grad
        return frozen.to(self.running_mean.device).train(self.training)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """BN over `(N, C)` or `(N, C, L)`, with a fused activation."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """BN over `(N, C, H, W)`, with a fused activation."""

    ranks = (4,)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """BN over `(N, C, D, H, W)`, with a fused activation."""

    ranks = (5,)


class FrozenBatchNorm2d(NormLayer):
    """BN with fixed statistics and a fixed affine, as detectron2's, with a fused activation.

    Everything but `tau` is a buffer, under detectron2's names. Weights with folded statistics
    (Caffe2's: `weight` and `bias` alone) load with mean 0 and variance 1 and are valid only frozen.
    Takes any `(N, C, *S)`. Saves nothing of activation size but what the activation needs.
    """

    _version = 3
    tests_as_bn = True
    scriptable = True

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        activation: str | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.backend = backend
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)
        self._init_activation(num_features, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
            return scripted.activate(y, self.tau, self.activation)
        else:
            return self._by_fixed_statistics(x)

    def _by_fixed_statistics(self, x: torch.Tensor) -> torch.Tensor:
        return self._normalize(x, self.tau, activation=self.activation)

    def fuses_join(self) -> bool:
        return self._unobserved()

    def joined(self, x: torch.Tensor, residual: torch.Tensor, join: NormLayer) -> torch.Tensor:
        if not self.fuses_join():
            return super().joined(x, residual, join)
        return self._normalize(x, join.tau, activation=join.activation, residual=residual)

    def _normalize(self, x, tau, **options) -> torch.Tensor:
        self._check_input(x)
        return frozen_bn_act(
            x, self.weight, self.bias, self.running_mean, self.running_var, tau,
            eps=self.eps, backend=self.backend, **options,
        )  # fmt: skip

    def fixed_affine(self):
        return frozen_affine(
            self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )

    def expected_moments(self, mean, square):
        return BatchStatistics.expected_moments(self, mean, square)

    def put_moments(self, mean, square):
        BatchStatistics.put_moments(self, mean, square)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Fix the statistics of every norm below `module`, keep activations, and return the result.

    BN is replaced by its frozen form; if `module` itself is a BN, it stays and a new module is
    returned. Other norms with batch statistics stay in test mode from now on.
    """
    if isinstance(module, BatchStatistics):
        return module.frozen()
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module
