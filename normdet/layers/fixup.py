"""The scalars that Fixup (Zhang et al., 1901.09321) puts in place of norms."""

import torch
from torch import nn

from ..ops import act
from ..ops.padded import Padded, like, plain
from .base import NormLayer


class FixupScalars(NormLayer):
    """`activation(scale * x + shift) + offset`, each a single learned number or left out.

    Fixup has a bias before each convolution and each activation, and a multiplier at the end of a
    residual branch (1901.09321, section 3, rule 3). This module follows a convolution. It has the
    bias before the activation (`shift`) and the one before the next convolution (`offset`).

    Args:
        num_features: channels `C` of the input `(N, C, *S)`.
        activation: `None` or `"ReLU"`.
        scale: multiply, from 1.
        shift: add before the activation, from 0.
        offset: add behind the activation, from 0.
        rate: their learning rate as a share of the weights'; 0.1 in the authors' code.
    """

    def __init__(
        self,
        num_features: int,
        activation: str | None = None,
        *,
        scale: bool = False,
        shift: bool = True,
        offset: bool = False,
        rate: float = 0.1,
    ):
        super().__init__()
        self.num_features = num_features
        self.rate = rate
        self._init_activation(num_features, activation)
        for name, there, start in (("scale", scale, 1.0), ("shift", shift, 0.0),
                                   ("offset", offset, 0.0)):  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.tensor([start])) if there else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input(x)
        if isinstance(x, Padded):
            return like(self.forward(plain(x)), x)
        # A tensor of one element would widen a half-precision input.
        scale, shift, offset = (
            p if p is None else p.to(x.dtype) for p in (self.scale, self.shift, self.offset)
        )
        x = x if scale is None else x * scale
        x = x if shift is None else x + shift
        x = act(x, self.tau, activation=self.activation)
        return x if offset is None else x + offset

    def rates(self) -> dict[str, float]:
        """The learning rate of each parameter relative to that of the weights."""
        return {name: self.rate for name, _ in self.named_parameters(recurse=False)}

    def extra_repr(self) -> str:
        names = "".join(f", {name}" for name, _ in self.named_parameters(recurse=False))
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"{self.num_features}{names}{activation}"
