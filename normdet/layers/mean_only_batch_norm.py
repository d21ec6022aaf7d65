"""Mean-only batch norm, the companion of weight normalization (1602.07868, section 4)."""

from torch import Tensor

from .batch_statistics import RunningNorm
from .moments import instance_means


class MeanOnlyBatchNorm(RunningNorm):
    """`(x - mu_B) * gamma + beta`; the running mean at test time. The weights set the variance.

    Keeps `x` for the gradient of gamma.

    Args:
        kwargs: see :class:`RunningNorm`; there is no variance and no epsilon.
    """

    def __init__(self, num_features: int, **kwargs):
        super().__init__(num_features, eps=0.0, **kwargs)
        self.running_var = None

    def normalize(self, x: Tensor) -> Tensor:
        mean = instance_means(x)
        mean, _, _ = self.batch_moments(x, (mean, mean.new_zeros(mean.shape)))
        return self.scale_and_shift(x, mean, mean.new_ones(mean.shape))
