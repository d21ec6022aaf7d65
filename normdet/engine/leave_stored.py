"""Anneal converted norms from their stored moments to their own during training."""

from detectron2.engine import HookBase
from torch import nn

from normdet.layers import leave_stored


class LeaveStored(HookBase):
    """Moves converted norms from their stored moments to their own, then drops the stored ones.

    `t` follows from the iteration, so a resumed run continues where it was. It is logged as a
    curve. Models without such norms cost nothing.

    Args:
        models: see :func:`normdet.layers.leave_stored`; the one that trains, and its average.
        until: the share of training after which nothing stored is left.
    """

    def __init__(self, *models: nn.Module, until: float):
        self._models = models
        self._until = until
        self._left = True

    def before_train(self) -> None:
        """Find the converted norms; the weights are loaded by now."""
        self._left = self._move(self._t())

    def before_step(self) -> None:
        """Set `t` for this iteration."""
        if self._left:
            t = self._t()
            self._move(t)
            self.trainer.storage.put_scalar("own_moments", t, smoothing_hint=False)
            self._left = t < 1

    def _move(self, t: float) -> bool:
        return any([leave_stored(model, t) for model in self._models])

    def _t(self) -> float:
        last = max(self._until * (self.trainer.max_iter - 1), 1)
        return min(self.trainer.iter / last, 1.0)
