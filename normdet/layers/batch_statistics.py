"""The base of norms with batch statistics: moments, running averages, pooling over workers."""

import torch
from torch import Tensor, nn

from ..errors import NormdetError
from ..ops import act
from ..ops.padded import Padded, like, plain, pooled, sizes
from ..ops.reference import frozen_affine
from .base import NormLayer
from .moments import affine, instance_moments, pool, pool_workers, several_workers

_RANKS = {None: None, 0: (2,), 1: (3,), 2: (4,), 3: (5,)}


def of_no_data(mean: Tensor, var: Tensor) -> bool:
    """Whether statistics `(C,)` are the start values, mean 0 and variance 1, up to an epsilon.

    A norm has these before training, and after its statistics were folded into the affine;
    :func:`is_folded` distinguishes the two.
    """
    return not mean.any() and bool(((var - 1).abs() < 2e-5).all())


def is_folded(
    mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> bool:
    """Whether statistics `(C,)`, of no data, are folded into the affine, which was trained.

    An untrained affine has bias 0 and weight 1, or weight 0 at the end of a residual branch.
    """
    trained = bias is not None and bool(bias.any())
    if weight is not None:
        trained = trained or not bool(((weight == 0) | (weight == 1)).all())
    return trained and of_no_data(mean, var)


class BatchStatistics(NormLayer):
    """Base of batch norm and related norms: normalize by the batch, learn running averages of it.

    A subclass writes :meth:`normalize`, usually from :meth:`batch_moments` and
    :meth:`scale_and_shift`.

    Attributes:
        needs_batch: whether it cannot train on one value per channel.
        sync: whether the statistics are of all workers' batches. This costs one small gather in
            forward and one small all-reduce in backward, and every worker must call the layer, with
            an empty batch if it has none.
        is_frozen: whether it stays in test mode even after `train()`.
        by_example: whether it takes moments of single examples too.
    """

    batch_statistics = True
    needs_batch = True
    sync = False
    is_frozen = False
    by_example = False

    def normalize(self, x: Tensor) -> Tensor:
        """The method itself, affine included, without the activation."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if isinstance(x, Padded):
            return self.of_images(x)
        return self.activate_normalized(self.normalize(x))

    def of_images(self, x: Padded) -> Padded:
        """The forward of a padded map: all statistics are of its images alone."""
        if self.by_example:
            return like(self.activate_normalized(plain(self.normalize(x))), x)
        if self.learns_from(x):
            return pooled(self.forward, x)
        return like(self.forward(plain(x)), x)

    def activate_normalized(self, y: Tensor) -> Tensor:
        """The activation of what :meth:`normalize` gives."""
        return act(y, self.tau, activation=self.activation)

    def learns_from(self, x: Tensor) -> bool:
        """Whether `x` is normalized by its batch; an empty batch only if workers share theirs."""
        return self.training and (x.numel() > 0 or self.pools_workers())

    def pools_workers(self) -> bool:
        return self.sync and several_workers()

    def batch_moments(
        self, x: Tensor, instance: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance `(C,)` to normalize by, and the count per channel behind them.

        In test mode these are the running averages. In training they are the batch's, which are
        differentiable, and the running averages are updated by them.

        Args:
            instance: the instance moments `(N, C)` of `x`, if they are known already.
        """
        areas = [h * w for h, w in sizes(x)] if isinstance(x, Padded) else None
        count = x.numel() // self.num_features if areas is None else sum(areas)
        count = torch.full((), count, device=x.device)
        if not self.learns_from(x):
            return self.running_mean, self.running_var, count
        mean, var = pool(*(instance or instance_moments(x)), dim=0, counts=areas)
        if self.pools_workers():
            mean, var, count = pool_workers(mean, var, count)
            # Reading the count waits for the device, so read it only if it could be too small.
            if x.numel() <= self.num_features and count == 1:
                self.refuse_one_value(x)
        elif x.numel() == self.num_features:
            self.refuse_one_value(x)
        self._learn(mean, var, count)
        return mean, var, count

    def refuse_one_value(self, x: Tensor) -> None:
        """Refuse a batch with one value per channel, whose normalized value is always 0.

        Raises:
            NormdetError: if the method takes its statistics from the batch alone.
        """
        if self.needs_batch:
            raise NormdetError(
                f"{type(self).__name__} takes more than 1 value per channel when training, got "
                f"{tuple(x.shape)}; GN, LN and FRN normalize a single example"
            )

    @torch.no_grad()
    def _learn(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the averages as torch's batch norm. A single value has no unbiased variance."""
        learnable = count > 1
        rate = (self.momentum * learnable).to(self.running_mean.dtype)
        self.num_batches_tracked.add_(learnable)
        self.running_mean.lerp_(mean.to(rate.dtype), rate)
        if self.running_var is not None:
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(rate.dtype), rate)

    def expected_moments(self, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        if self.running_var is None:
            return mean, torch.ones_like(mean)
        return mean, square - mean.square()

    @torch.no_grad()
    def put_moments(self, mean: Tensor, square: Tensor) -> None:
        self.running_mean.copy_(mean)
        if self.running_var is not None:
            self.running_var.copy_(square - mean.square() - self.eps)

    def scale_and_shift(
        self, x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor | None = None
    ) -> Tensor:
        """`((x - centre) * scale + shift) * gamma + beta`; gamma and beta may be `None`."""
        if self.weight is not None:
            scale = scale * self.weight
            shift = shift if shift is None else shift * self.weight
        if self.bias is not None:
            shift = self.bias if shift is None else shift + self.bias
        return affine(x, centre, scale, shift)

    def fixed_affine(self) -> tuple[Tensor, Tensor] | None:
        if self.training or not self.tests_as_bn or self.running_mean is None:
            return None
        return frozen_affine(self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def frozen(self) -> nn.Module:
        """Put the norm in test mode for good, as in a frozen stage, and return it."""
        self.is_frozen = True
        return self.eval()

    def train(self, mode: bool = True):
        return super().train(mode and not self.is_frozen)

    def extra_repr(self) -> str:
        sync = ", sync=True" if self.sync else ""
        return f"{NormLayer.extra_repr(self)}, momentum={self.momentum}{sync}"


class RunningNorm(BatchStatistics):
    """Base of the norms with batch statistics that are not torch's own batch norm.

    State-dict keys are those of torch's batch norm, and those that a method adds.

    Args:
        num_features: channels `C` of an input `(N, C, *S)`.
        eps: added to variances.
        momentum: the share of a batch in the running averages.
        activation: `None`, `"ReLU"` or `"TLU"`.
        dims: spatial dimensions the input must have, 0 for `(N, C)`; `None` for any.
        sync: take the batch of all workers (:class:`BatchStatistics`).

    Raises:
        NormdetError: on unfit input, or one value per channel in training.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        activation: str | None = None,
        dims: int | None = None,
        sync: bool = False,
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.sync = sync
        self.ranks = _RANKS[dims]
        self._init_affine(num_features)
        self._init_activation(num_features, activation)
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
