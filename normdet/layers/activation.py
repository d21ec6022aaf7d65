"""Activations outside of norms: TLU, and the residual addition at the end of a block."""

import torch

from ..ops import act, add_act, scripted
from .base import NormLayer


class TLU(NormLayer):
    """Thresholded Linear Unit, `max(x, tau)`, one learned `tau` per channel (1911.09737, eq. 5).

    Starts as ReLU (`tau = 0`). Where `x > tau` the gradient goes to `x`, elsewhere, ties included,
    to `tau`. Saves `x`.

    Args:
        num_features: channels `C` of an input `(N, C, *S)`.
    """

    scriptable = True

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features
        self._init_activation(num_features, "TLU")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scripted.act(x, self.tau)
        else:
            self._check_input(x)
            return act(x, self.tau, activation="TLU")

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class AddAct(NormLayer):
    """`activation(x + y)`: the join of a residual block, with a `tau` of its own under TLU.

    Args:
        num_features: channels `C` of both inputs `(N, C, *S)`.
        activation: `None`, `"ReLU"` or `"TLU"`.
    """

    scriptable = True

    def __init__(self, num_features: int, activation: str | None = "ReLU", backend: str = "auto"):
        super().__init__()
        self.num_features = num_features
        self.backend = backend
        self._init_activation(num_features, activation)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return scripted.activate(x + y, self.tau, self.activation)
        else:
            return add_act(x, y, self.tau, activation=self.activation, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.num_features}, activation={self.activation!r}"
