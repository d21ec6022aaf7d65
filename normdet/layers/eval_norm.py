"""EvalNorm (Singh and Shrivastava, 1904.06031): BN whose test time resembles its training."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.padded import Padded, pooled
from ..option_text import with_norm
from .batch_norm import _BatchNorm
from .batch_statistics import RunningNorm
from .moments import instance_moments


class EvalNorm(RunningNorm):
    """Trains exactly as BN; at test time blends an example's own moments with the running ones.

    In a training batch of `N` examples, each example has a share of `1 / N` in the moments it is
    normalized by. At test time it has the share `blend`, and the running averages have the rest.
    The two are pooled like two parts of one batch:

        mean = blend * mu_x + (1 - blend) * mu
        var = blend * var_x + (1 - blend) * var + blend * (1 - blend) * (mu_x - mu)^2

    For independent examples this is the expectation of the training moments, given the example.
    The buffer `blend` `(1,)` follows `1 / N` while training (0 at first, plain BN);
    :func:`normdet.convert.blend.fit_eval_norm` learns it from images afterwards, which takes into
    account that examples of one batch are alike. Keeps what BN keeps.

    Args:
        kwargs: see :class:`RunningNorm`.
    """

    tests_as_bn = True
    by_example = True

    def __init__(self, num_features: int, **kwargs):
        super().__init__(num_features, **kwargs)
        self.register_buffer("blend", torch.zeros(1))

    def normalize(self, x: Tensor) -> Tensor:
        if not self.learns_from(x):
            return self.normalize_with(x, *self.blended_moments(*instance_moments(x), self.blend))
        self._learn_blend(x)
        if self.pools_workers():
            return self.normalize_with(x, *self.batch_moments(x)[:2])
        return pooled(self._by_batch, x) if isinstance(x, Padded) else self._by_batch(x)

    def _by_batch(self, x: Tensor) -> Tensor:
        if x.numel() == self.num_features:
            self.refuse_one_value(x)
        self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            True, self.momentum, self.eps,
        )  # fmt: skip

    def fixed_affine(self) -> None:
        """None, since the affine depends on the example."""

    def normalize_with(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalize by the given moments, `(C,)` or `(N, C)`."""
        return self.scale_and_shift(x, mean, (var + self.eps).rsqrt())

    def blended_moments(
        self, mean: Tensor, var: Tensor, blend: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """The moments `(N, C)` used to normalize examples with these own moments."""
        away = mean - self.running_mean
        blended_var = self.running_var + blend * (var - self.running_var)
        return self.running_mean + blend * away, blended_var + blend * (1 - blend) * away.square()

    @torch.no_grad()
    def _learn_blend(self, x: Tensor) -> None:
        examples = torch.full((1,), float(len(x)), device=x.device)
        if self.pools_workers():
            dist.all_reduce(examples)
        self.blend.lerp_((1 / examples.clamp(min=1)).to(self.blend.dtype), self.momentum)

    def scalars(self) -> dict[str, float]:
        return {"blend": float(self.blend)}


def to_eval_norm(module: nn.Module) -> nn.Module:
    """Replace every BN below `module` by an EvalNorm with its weights and averages; returns it.

    The blend starts at 0, plain BN. Frozen BN stays as it is. If `module` itself is a
    BN, it is not changed: a new module is returned.
    """
    if isinstance(module, _BatchNorm):
        return _from_batch_norm(module)
    for name, child in module.named_children():
        setattr(module, name, to_eval_norm(child))
    return module


def _from_batch_norm(norm: _BatchNorm) -> EvalNorm:
    new = EvalNorm(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, activation=norm.activation,
        sync=norm.sync,
    )  # fmt: skip
    new.ranks = norm.ranks
    for name in ("weight", "bias", "tau"):
        setattr(new, name, getattr(norm, name))
    for name, value in norm.named_buffers():
        setattr(new, name, value)
    new.blend = new.blend.to(norm.running_mean)
    if hasattr(norm, "option"):
        new.option = with_norm(norm.option, "EvalNorm")
    return new.train(norm.training)
