"""An average of the model over its training steps, which is evaluated and saved in its place."""

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from normdet.errors import NormdetError

# Buffers that are averages over images. They must be averaged together with the weights.
_RUNNING = ("running_mean", "running_var")


class ModelAverage(HookBase):
    """torch's `AveragedModel` by an exponential moving average, with the right buffers per norm.

    Parameters are averaged, and so are running means and variances. Every other buffer is copied:
    counters, schedules, spectral norm's vectors, fixed statistics. After `n` steps the decay is
    `min(decay, (1 + n) / (10 + n))`, so that the start is soon forgotten.

    A checkpoint has the average as its model, so every command uses what was evaluated; this hook's
    state has the weights that train. Costs the memory of a second model and one pass over its
    parameters per step.

    Args:
        model: the one that trains; each process of a job averages its own.
        decay: of the average, from 0 to below 1.

    Attributes:
        module: the average, a model like the one that trains.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise NormdetError(f"SOLVER.EMA.DECAY {decay} must be from 0 to below 1")
        parallel = isinstance(model, DistributedDataParallel)
        self._model = model.module if parallel else model
        self._decay = decay
        self._averaged = AveragedModel(self._model, multi_avg_fn=self._mix, use_buffers=True)
        self._loaded = False
        self._means: set[int] = set()

    @property
    def module(self) -> nn.Module:
        return self._averaged.module

    def before_train(self) -> None:
        """Start from the weights that were loaded."""
        if not self._loaded:
            self._copy()
        self._note_means()

    def after_step(self) -> None:
        """Add the step's weights to the average."""
        self._averaged.update_parameters(self._model)

    def state_dict(self) -> dict:
        """The weights that train, and how many steps the average has seen."""
        return {"trains": self._model.state_dict(), "steps": int(self._averaged.n_averaged)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Resume from a checkpoint; its model, the average, is loaded already."""
        self._copy()
        self._model.load_state_dict(state_dict["trains"])
        self._averaged.n_averaged.fill_(state_dict["steps"])
        self._loaded = True

    def _copy(self) -> None:
        self.module.load_state_dict(self._model.state_dict())

    def _note_means(self) -> None:
        named = [*self.module.named_parameters()]
        named += [(n, b) for n, b in self.module.named_buffers() if n.endswith(_RUNNING)]
        self._means = {tensor.data_ptr() for _, tensor in named}

    @torch.no_grad()
    def _mix(self, averages: list[Tensor], now: list[Tensor], steps: Tensor) -> None:
        n = int(steps)
        decay = min(self._decay, (1 + n) / (10 + n))
        for average, value in zip(averages, now, strict=True):
            if average.data_ptr() in self._means:
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)
