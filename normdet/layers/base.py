"""The base of every normalization layer: an affine, an optional activation, an input check."""

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import nn

from ..errors import NormdetError
from ..files.words import listed
from ..ops import act

ACTIVATIONS = (None, "ReLU", "TLU")
# Activations that raise every value below a threshold to the threshold.
CLAMPING = ("ReLU", "TLU")


class NormLayer(nn.Module):
    """Base of every norm. A norm may apply the activation too, in one fused module.

    A subclass calls :meth:`_init_activation` in its constructor; `tau` `(C,)` exists only under
    TLU, so that state-dict keys under ReLU are those of the plain norm.

    Attributes:
        ranks: the input ranks it takes, or `None` for any `(N, C, *S)`.
        batch_statistics: whether an example's output depends on the rest of its batch in training.
        tests_as_bn: whether test time computes what BN does: an affine of its running averages.
            An :class:`EvalNorm` does until it is fitted.
        scriptable: whether `torch.jit.script` can compile it.
    """

    ranks: tuple[int, ...] | None = None
    batch_statistics = False
    tests_as_bn = False
    scriptable = False

    def _init_activation(self, channels: int, activation: str | None) -> None:
        if activation not in ACTIVATIONS:
            raise NormdetError(f"unknown activation {activation!r}: one of {ACTIVATIONS}")
        self.activation = activation
        tau = nn.Parameter(torch.zeros(channels)) if activation == "TLU" else None
        self.register_parameter("tau", tau)

    def _init_affine(self, channels: int) -> None:
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def _check_input(self, x: torch.Tensor) -> None:
        channels = self.num_features
        ranks = self.ranks
        if (ranks is None or x.dim() in ranks) and x.dim() >= 2 and x.shape[1] == channels:
            return
        shapes = ["(N, C)", "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)"]
        takes = listed((shapes[rank - 2] for rank in ranks or (2, 3, 4, 5)), "or")
        raise NormdetError(
            f"{type(self).__name__}({channels}) takes {takes} with C = {channels}, "
            f"got {tuple(x.shape)}"
        )

    def joined(self, x: torch.Tensor, residual: torch.Tensor, join: "NormLayer") -> torch.Tensor:
        """`join(self(x), residual)`: the norm at a residual block's end, with its join.

        A norm with a fused form computes both in one pass over `x` (:meth:`fuses_join`).
        """
        return join(self(x), residual)

    def fuses_join(self) -> bool:
        """Whether :meth:`joined` is one pass: the norm has a fused form, and no hook watches it."""
        return False

    def _unobserved(self) -> bool:
        return not (self.activation or self._forward_hooks or self._forward_pre_hooks)

    def __prepare_scriptable__(self) -> "NormLayer":
        """The hook by which `torch.jit.script` prepares a module; it refuses with a clear message.

        Raises:
            NormdetError: the method has no form that it can compile.
        """
        if not self.scriptable:
            refuse_scripting(self, "trace it instead")
        return self

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters without weight decay: gamma, beta, tau and learned epsilons."""
        return self.parameters(recurse=False)

    def after_step(self) -> None:
        """Called after each optimizer step."""

    def rates(self) -> dict[str, float]:
        """Parameters, by name, that train at a multiple of the learning rate."""
        return {}

    def scalars(self) -> dict[str, float]:
        """Numbers to plot over training."""
        return {}

    def expected_moments(self, mean: torch.Tensor, square: torch.Tensor) -> tuple:
        """The centre and the variance with which it would normalize inputs with these moments.

        Args:
            mean: of its input's channels over examples and space, `(C,)`.
            square: of their squares, `(C,)`.

        Returns:
            Both `(C,)`. An example that has these moments becomes
            `(x - first) / sqrt(second) * gamma + beta` at test time.

        Raises:
            NormdetError: the method has no such form.
        """
        raise NormdetError(f"{type(self).__name__} has no closed form to convert into")

    def put_moments(self, mean: torch.Tensor, square: torch.Tensor) -> None:
        """Set the running averages, if there are some, to these moments of its input.

        Args:
            mean: of its input's channels over examples and space, `(C,)`.
            square: of their squares, `(C,)`.
        """

    def fixed_affine(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Scale and shift `(C,)` that it applies before its activation; None if they vary.

        They are those of its present mode; batch norm has them in test mode.
        """
        return None

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """Apply only its activation, to `(N, C, *S)`."""
        return act(x, self.tau, activation=self.activation)

    def clamped(self, output: torch.Tensor) -> torch.Tensor | None:
        """Which outputs are at the activation's threshold; None if it has none."""
        if self.activation not in CLAMPING:
            return None
        if self.tau is None:
            return output <= 0
        return output <= self.tau.to(output.dtype).view(1, -1, *[1] * (output.dim() - 2))

    def extra_repr(self) -> str:
        activation = f", activation={self.activation!r}" if self.activation else ""
        return f"{self.num_features}, eps={self.eps:g}{activation}"


def refuse_scripting(module: nn.Module, way_out: str) -> NoReturn:
    """Refuse `torch.jit.script`, naming what can be done instead."""
    raise NormdetError(
        f"{type(module).__name__} cannot be scripted (torch.jit.script): {way_out}, or write the "
        "model by `normdet export`"
    )


def after_step(model: nn.Module) -> None:
    """Tell every norm of a model that the optimizer made a step. Call this after each step.

    BIN keeps its gate in [0, 1] here and BRN counts its schedule; the other norms need nothing.
    """
    for module in model.modules():
        if isinstance(module, NormLayer):
            module.after_step()
