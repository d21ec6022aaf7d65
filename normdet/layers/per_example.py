"""The base of per-example norms: a learned epsilon, and a gradual change from stored moments."""

import torch
from torch import Tensor, nn

from ..errors import NormdetError
from ..ops import act, frozen_bn_act
from ..ops.tiles import is_tiled
from .base import NormLayer
from .moments import affine


class StoredMoments(nn.Module):
    """The moments that a network was trained with, and how far its norm has left them.

    Attributes:
        mean: the number subtracted from each channel, `(C,)`.
        var: each channel was divided by its root, `(C,)`.
        t: 0 for the stored moments alone, 1 for the example's own alone; `()`.
    """

    def __init__(self, mean: Tensor, var: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)
        self.register_buffer("t", torch.zeros((), device=mean.device))


class PerExampleNorm(NormLayer):
    """Base of GN, its kin and FRN.

    Attributes:
        family: the option's name, whose config keys it takes.
        eps_l: the learned epsilon `(1,)`, whose size is added to `eps`; `None` without one.
        stored: the :class:`StoredMoments` being annealed away; `None` in a layer that was not
            converted. Saved with the weights, under the keys `stored.*`.
    """

    family = ""

    def _init_epsilon(self, eps: float, learned: bool) -> None:
        self.eps = eps
        self.eps_l = nn.Parameter(torch.full((1,), 1e-4)) if learned else None
        self.stored: StoredMoments | None = None

    def _eps(self) -> float | Tensor:
        return self.eps if self.eps_l is None else self.eps + self.eps_l.abs()

    def fuses_join(self) -> bool:
        return self.stored is None and self._unobserved()

    def joined(self, x: Tensor, residual: Tensor, join: NormLayer) -> Tensor:
        if not self.fuses_join():
            return super().joined(x, residual, join)
        self._check_input(x)
        return self._fast(x, join.tau, activation=join.activation, residual=residual)

    def _fused(self, x: Tensor) -> Tensor:
        """The forward outside of TorchScript."""
        self._check_input(x)
        if self.stored is not None:
            return self.leaving_stored(x)
        return self._fast(x, self.tau, activation=self.activation)

    def _fast(self, x: Tensor, tau: Tensor | None, **options) -> Tensor:
        return (self._of_image if is_tiled(x) else self._normalize)(x, tau, **options)

    def _of_image(self, x: Tensor, tau: Tensor | None, **options) -> Tensor:
        """The norm of tiles by their image's moments: one affine for all, without gradients."""
        with torch.no_grad():
            mean, var = self.own_moments(x)
            return frozen_bn_act(
                x, self.weight.detach(), self.bias.detach(), mean[0], var[0], tau, eps=0.0,
                backend=self.backend, **options,
            )  # fmt: skip

    def _normalize(self, x: Tensor, tau: Tensor | None, **options) -> Tensor:
        """The fused norm with its activation and, if given, a residual."""
        raise NotImplementedError

    def own_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the variance that each example is normalized by, both `(N, C)`."""
        raise NotImplementedError

    def leaving_stored(self, x: Tensor) -> Tensor:
        """The norm by `(1 - t) * stored + t * own`, a few passes slower than the fused one."""
        stored = self.stored
        own_mean, own_var = self.own_moments(x)
        mean = stored.mean.lerp(own_mean, stored.t)
        scale = stored.var.lerp(own_var, stored.t).rsqrt() * self.weight
        y = affine(x, mean, scale, self.bias.expand_as(scale))
        return act(y, self.tau, activation=self.activation)

    def scalars(self) -> dict[str, float]:
        return {} if self.eps_l is None else {"learned_eps": float(self.eps_l.detach().abs())}

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.eps_l is None and f"{prefix}eps_l" in state_dict:
            raise NormdetError(
                f"{prefix}eps_l: these weights have a learned epsilon, which this norm has not: "
                f"set MODEL.NORMDET.{self.family}.LEARNED_EPS always"
            )
        mean, var = (state_dict.get(f"{prefix}stored.{key}") for key in ("mean", "var"))
        if mean is not None and var is not None and mean.shape == var.shape == self.weight.shape:
            self.stored = StoredMoments(*(self.weight.new_zeros(mean.shape) for _ in range(2)))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learned_eps=True" if self.eps_l is not None else "")


def leave_stored(model: nn.Module, t: float) -> int:
    """Set `t` of all norms with stored moments in a model; at 1, drop the moments.

    Returns:
        The number of such norms.
    """
    norms = [m for m in model.modules() if isinstance(m, PerExampleNorm) and m.stored is not None]
    for norm in norms:
        if t >= 1:
            norm.stored = None
        else:
            norm.stored.t.fill_(t)
    return len(norms)
