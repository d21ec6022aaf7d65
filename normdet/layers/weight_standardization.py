"""Weight Standardization (Qiao et al., 1903.10520), in both dialects."""

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import NormdetError
from ..ops import check_dialect, scripted, standardize_weight
from .reparametrized import out_dim


class WSConv2d(nn.Conv2d):
    """A convolution whose weight is standardized over `(C_in / groups, kH, kW)` per output channel.

    Two dialects, whose trained weights do not mix: `"jhu"` (the authors' and mmcv's: unbiased
    deviation, 1e-5 added to it) and `"timm"` (timm's and BiT's: biased variance, 1e-6 under the
    root). A weight that is frozen, or in eval without gradients, is standardized once; that is kept
    until the weight changes.

    Args:
        norm: module applied to the output, or `None`; belongs behind it: the scale of the weight
            is gone.
        activation: module applied last, or `None`.

    Raises:
        NormdetError: on an unknown dialect.
    """

    def __init__(self, *args, dialect: str = "jhu", norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.dialect = check_dialect(dialect)
        self.norm = norm
        self.activation = activation
        self._folded: tuple[nn.Parameter, tuple[int, int], torch.Tensor] | None = None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, dialect: str = "jhu") -> "WSConv2d":
        """Take over a convolution: its geometry, parameters, norm and activation."""
        new = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
            conv.dilation, conv.groups, bias=False, padding_mode=conv.padding_mode,
            dialect=dialect, norm=getattr(conv, "norm", None),
            activation=getattr(conv, "activation", None), device="meta",
        )  # fmt: skip
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def standardized_weight(self) -> torch.Tensor:
        """The weight in use, `(C_out, C_in / groups, kH, kW)`."""
        learning = self.weight.requires_grad and (self.training or torch.is_grad_enabled())
        if learning or torch.compiler.is_compiling():
            self._folded = None
            return standardize_weight(self.weight, dialect=self.dialect)
        key = (self.weight.data_ptr(), self.weight._version)
        # Keep the parameter itself too: a new one may be allocated at the same address.
        if self._folded is None or self._folded[0] is not self.weight or self._folded[1] != key:
            folded = standardize_weight(self.weight.detach(), dialect=self.dialect)
            self._folded = self.weight, key, folded
        return self._folded[2]

    def train(self, mode: bool = True) -> "WSConv2d":
        """Forget the folded weight: an edit of `weight.data` is not noticed otherwise."""
        self._folded = None
        return super().train(mode)

    def _apply(self, *args, **kwargs) -> "WSConv2d":
        self._folded = None
        return super()._apply(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            weight = scripted.standardize_weight(self.weight, self.dialect)
        else:
            weight = self.standardized_weight()
        x = self._conv_forward(x, weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dialect={self.dialect!r}"


class WeightStandardization(nn.Module):
    """The same as a torch parametrization, for layers other than plain 2-D convolutions."""

    def __init__(self, dialect: str = "jhu", out_dim: int = 0):
        super().__init__()
        self.dialect = check_dialect(dialect)
        self.out_dim = out_dim

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return standardize_weight(weight, dialect=self.dialect, out_dim=self.out_dim)


def standardize(module: nn.Module, dialect: str = "jhu") -> nn.Module:
    """The module with a standardized weight: a :class:`WSConv2d`, or the same one parametrized.

    Transposed convolutions, linear layers and deformable convolutions keep their class; their key
    `weight` becomes `parametrizations.weight.original`.

    Raises:
        NormdetError: each filter has a single weight, of which standardization leaves 0.
    """
    weight = module.weight
    if weight.movedim(out_dim(module), 0)[:1].numel() == 1:
        raise NormdetError(
            f"a filter of {type(module).__name__} has one weight (weight {tuple(weight.shape)}): "
            "WS would make it 0, and the layer's output with it; leave WS out here"
        )
    if isinstance(module, nn.Conv2d):
        return WSConv2d.from_conv(module, dialect)
    method = WeightStandardization(dialect, out_dim(module))
    parametrize.register_parametrization(module, "weight", method)
    return module
