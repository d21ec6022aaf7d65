"""Replace running averages by the moments of a whole population (PreciseBN, 2105.07576, 3)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.padded import parts
from .batch_statistics import BatchStatistics
from .moments import several_workers


class Moments:
    """Mean and variance of each channel over all values added, in float64."""

    def __init__(self, channels: int, device: torch.device):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self._sums = self.count.new_zeros(2, channels)  # of values and of their squares

    def take(self, x: Tensor) -> None:
        """Add every value of `(N, C, *S)`."""
        for part in parts(x.detach()):
            rows = part.double().movedim(1, -1).flatten(0, -2)
            self.add(len(rows), rows.sum(0), rows.square().sum(0))

    def add(self, count: int, total: Tensor, squares: Tensor) -> None:
        """Add `count` values per channel by their sum and their sum of squares, `(C,)`."""
        self.count += count
        self._sums += torch.stack([total, squares])

    def pool_workers(self) -> None:
        """Add the values of the other processes; each must call it."""
        if several_workers():
            dist.all_reduce(self.count)
            dist.all_reduce(self._sums)

    @property
    def mean(self) -> Tensor:
        return self._sums[0] / self.count.clamp(min=1)

    @property
    def var(self) -> Tensor:
        return (self._sums[1] / self.count.clamp(min=1) - self.mean.square()).clamp(min=0)


class Population:
    """Mean and variance of everything that a norm sees in training mode while it is watched.

    The norm computes as it does in training, and keeps its running averages. The variance is that
    of the population: it includes how batch means differ. Batches are weighted by their size.

    Args:
        norm: any norm with running averages; see :func:`learning_norms`.
    """

    def __init__(self, norm: BatchStatistics):
        self._norm = norm
        self._moments = Moments(len(norm.running_mean), norm.running_mean.device)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, add the inputs of every call of the norm."""
        norm = self._norm
        momentum, norm.momentum = norm.momentum, 1.0
        before = [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]

        def take(norm: BatchStatistics, inputs: tuple, _) -> None:
            self._take(sum(part.numel() for part in parts(inputs[0])) // norm.num_features)
            for buffer, value in before:
                buffer.copy_(value)

        handle = norm.register_forward_hook(take)
        try:
            yield
        finally:
            handle.remove()
            norm.momentum = momentum

    def _take(self, count: int) -> None:
        """Read a batch's moments from the running averages, which momentum 1 has set to them."""
        if count < 2:
            return  # one value per channel has no unbiased variance
        mean, var = self._norm.running_mean.double(), self._norm.running_var
        biased = 0.0 if var is None else var.double() * (count - 1) / count
        self._moments.add(count, count * mean, count * (mean.square() + biased))

    def learn(self) -> bool:
        """Put the moments over all processes into the norm; return False if there were no inputs.

        With several processes each must call it, for the same norms in the same order.
        """
        self._moments.pool_workers()
        if self._moments.count == 0:
            return False
        self._norm.running_mean.copy_(self._moments.mean)
        if self._norm.running_var is not None:
            self._norm.running_var.copy_(self._moments.var)
        return True


def learning_norms(model: nn.Module) -> dict[str, BatchStatistics]:
    """The norms, by name, whose running averages change in training; without frozen ones."""
    return {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, BatchStatistics)
        and not norm.is_frozen
        and isinstance(getattr(norm, "running_mean", None), Tensor)
    }
