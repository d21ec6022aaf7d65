"""Weight Standardization (Qiao et al., 1903.10520), in both dialects."""

import torch
from torch import nn

from ..errors import NormdetError
from ..ops import check_dialect, scripted, standardize_weight
from .reparametrized import ReparametrizedConv2d, WeightMethod, out_dim, reparametrize


class WeightStandardization(WeightMethod):
    """`(w - mean(w)) / std(w)` per output channel, over all of its filter.

    There are two dialects, whose trained weights do not mix: `"jhu"` (the authors' and mmcv's:
    unbiased deviation, 1e-5 added to it) and `"timm"` (timm's and BiT's: biased variance, 1e-6
    under the root). It has no state, so a layer's state-dict keys are those of the plain layer.

    A weight that is frozen, or in eval without gradients, is standardized once, and again when it
    changes.

    Args:
        dialect: `"jhu"` or `"timm"`.
        out_dim: the dimension of the weight that holds the output channels.

    Raises:
        NormdetError: on an unknown dialect.
    """

    zero_sum = True

    def __init__(self, dialect: str = "jhu", out_dim: int = 0):
        super().__init__()
        self.dialect = check_dialect(dialect)
        self.out_dim = out_dim
        self._kept: tuple[torch.Tensor, tuple[int, int], torch.Tensor] | None = None

    @classmethod
    def of(cls, weight: torch.Tensor, out_dim: int, **params) -> "WeightStandardization":
        return cls(out_dim=out_dim, **params)

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Do nothing, since there is no state to fit."""
        return {}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scripted.standardize_weight(weight, self.dialect)
        else:  # TorchScript leaves this `else` out
            return self._standardized(weight)

    def _standardized(self, weight: torch.Tensor) -> torch.Tensor:
        learning = weight.requires_grad and (self.training or torch.is_grad_enabled())
        if learning or torch.compiler.is_compiling():
            self._kept = None
            return standardize_weight(weight, dialect=self.dialect, out_dim=self.out_dim)
        key = (weight.data_ptr(), weight._version)
        # Keep the weight itself too: a new one may be allocated at the same address.
        if self._kept is None or self._kept[0] is not weight or self._kept[1] != key:
            standard = standardize_weight(
                weight.detach(), dialect=self.dialect, out_dim=self.out_dim
            )
            self._kept = weight, key, standard
        return self._kept[2]

    def train(self, mode: bool = True) -> "WeightStandardization":
        """Forget the cached weight, since an edit of `weight.data` would not be noticed."""
        self._kept = None
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> "WeightStandardization":
        self._kept = None
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"dialect={self.dialect!r}"


class WSConv2d(ReparametrizedConv2d):
    """A convolution under :class:`WeightStandardization`, which can also be scripted.

    Args:
        dialect: `"jhu"` or `"timm"`.
        norm: module applied to the output, or `None`. There should be one, since the scale of the
            weight is lost.
        activation: module applied last, or `None`.

    Raises:
        NormdetError: on an unknown dialect.
    """

    def __init__(self, *args, dialect: str = "jhu", norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation
        self.reweight = WeightStandardization(dialect)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, dialect: str = "jhu") -> "WSConv2d":
        """Take over a convolution: its geometry, parameters, norm and activation."""
        return standardize(conv, dialect)

    @property
    def dialect(self) -> str:
        """The dialect of its standardization."""
        return self.reweight.dialect

    def standardized_weight(self) -> torch.Tensor:
        """The weight in use, `(C_out, C_in / groups, kH, kW)`."""
        return self.used_weight()

    def __prepare_scriptable__(self) -> "WSConv2d":
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            weight = self.reweight(self.weight)
        else:
            weight = self.used_weight(x)
        x = self._conv_forward(x, weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def standardize(module: nn.Module, dialect: str = "jhu") -> nn.Module:
    """Put a module under :class:`WeightStandardization`; a Conv2d becomes a :class:`WSConv2d`.

    Takes convolutions, transposed convolutions, linear layers and any other whose forward reads its
    `weight`, such as deformable convolutions.

    Raises:
        NormdetError: each filter has a single weight, which standardization would make 0.
    """
    refuse_single_weights(module, "WS")
    module = reparametrize(module, WeightStandardization, dialect=dialect)
    if isinstance(module, nn.Conv2d):
        for name in ("norm", "activation"):
            if not hasattr(module, name):
                setattr(module, name, None)
        module.__class__ = WSConv2d
    return module


def refuse_single_weights(module: nn.Module, method: str) -> None:
    """Refuse to standardize filters of one weight.

    Raises:
        NormdetError: the layer has such filters.
    """
    weight = module.weight
    if weight.movedim(out_dim(module), 0)[:1].numel() == 1:
        raise NormdetError(
            f"a filter of {type(module).__name__} has one weight (weight {tuple(weight.shape)}): "
            f"{method} would make it 0, and the layer's output with it; leave {method} out here"
        )
