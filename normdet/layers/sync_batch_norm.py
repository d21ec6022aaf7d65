"""Batch norm over all workers, like torch's `SyncBatchNorm`, but also on CPU and for any shares."""

from torch import Tensor

from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class _SyncBatchNorm:
    """BN with the statistics of the concatenated batch of all workers, each share of any size.

    With one worker, or no process group, it is plain BN. In training every worker must run its
    forward and backward, even with an empty share. Keeps `x`.
    """

    sync = True

    def normalize(self, x: Tensor) -> Tensor:
        if not (self.training and self.pools_workers()):
            return super().normalize(x)
        mean, var, _ = self.batch_moments(x)
        return self.scale_and_shift(x, mean, (var + self.eps).rsqrt())


class SyncBatchNorm1d(_SyncBatchNorm, BatchNorm1d):
    """Synchronized BN over `(N, C)` or `(N, C, L)`."""


class SyncBatchNorm2d(_SyncBatchNorm, BatchNorm2d):
    """Synchronized BN over `(N, C, H, W)`."""


class SyncBatchNorm3d(_SyncBatchNorm, BatchNorm3d):
    """Synchronized BN over `(N, C, D, H, W)`."""
