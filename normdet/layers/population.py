"""The moments of a whole population in place of running averages (PreciseBN, 2105.07576, 3)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch_statistics import BatchStatistics
from .moments import several_workers


class Population:
    """Mean and variance of everything that a norm sees in training mode while it is watched.

    The norm computes as it does in training, and keeps its running averages. The variance is that
    of the population: it includes how batch means differ. Batches are weighted by their size.

    Args:
        norm: any norm with running averages; see :func:`learning_norms`.
    """

    def __init__(self, norm: BatchStatistics):
        self._norm = norm
        # Of values a channel: their number, sum and sum of squares, in float64.
        self._count = torch.zeros((), dtype=torch.float64, device=norm.running_mean.device)
        self._sums = self._count.new_zeros(2, len(norm.running_mean))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take in every call of the norm inside."""
        norm = self._norm
        momentum, norm.momentum = norm.momentum, 1.0
        before = [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]

        def take(norm: BatchStatistics, inputs: tuple, _) -> None:
            self._take(inputs[0].numel() // norm.num_features)
            for buffer, value in before:
                buffer.copy_(value)

        handle = norm.register_forward_hook(take)
        try:
            yield
        finally:
            handle.remove()
            norm.momentum = momentum

    def _take(self, count: int) -> None:
        """Read a batch's moments off the running averages, which momentum 1 made just these."""
        if count < 2:
            return  # one value a channel has no unbiased variance to learn
        mean, var = self._norm.running_mean.double(), self._norm.running_var
        biased = 0.0 if var is None else var.double() * (count - 1) / count
        self._count += count
        self._sums += count * torch.stack([mean, mean.square() + biased])

    def learn(self) -> bool:
        """Put the moments of all processes' shares into the norm; False where nothing was seen.

        With several processes each must call it, for the same norms in the same order.
        """
        sums = torch.cat([self._count.view(1), self._sums.flatten()])
        if several_workers():
            dist.all_reduce(sums)
        count, (mean, square) = sums[0], sums[1:].view(2, -1)
        if count == 0:
            return False
        mean, square = mean / count, square / count
        self._norm.running_mean.copy_(mean)
        if self._norm.running_var is not None:
            self._norm.running_var.copy_((square - mean.square()).clamp(min=0))
        return True


def learning_norms(model: nn.Module) -> dict[str, BatchStatistics]:
    """The norms by name whose running averages learn in training: none of a frozen stage."""
    return {
        name: norm
        for name, norm in model.named_modules()
        if isinstance(norm, BatchStatistics)
        and not norm.is_frozen
        and isinstance(getattr(norm, "running_mean", None), Tensor)
    }
