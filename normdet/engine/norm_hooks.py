"""Statistics of a run's norms: curves while it trains, and a page of them when it ends."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.utils.hooks import RemovableHandle

from normdet.errors import NormdetError
from normdet.layers import NormLayer
from normdet.layers.base import CLAMPING
from normdet.ops.padded import parts

logger = logging.getLogger(__name__)


class NormScalars(HookBase):
    """Writes statistics of the norms as `LAYER/STATISTIC` curves, every `period` iterations.

    For every norm, and every activation that ends a block: the share of outputs that its activation
    clamps, the RMS of its outputs, gamma and tau, and scalars of the method, such as SwitchNorm's
    shares (`normdet.engine.norm_page.STATISTICS`). Outputs are measured in one step of a period.
    That step takes one more pass over each output and waits once for the device; other steps cost
    nothing. The hook draws no random numbers and needs no other process, so it can run on rank 0
    alone.

    Args:
        model: the one that trains.
        period: iterations between two measurements; 0 for none.
    """

    def __init__(self, model: nn.Module, period: int):
        self._period = period
        self._norms = {
            name.removeprefix("module."): module
            for name, module in model.named_modules()
            if isinstance(module, NormLayer)
        }
        self._handles: list[RemovableHandle] = []
        self._sums: dict[str, torch.Tensor] = {}

    def before_step(self) -> None:
        """Watch the outputs if this step is measured."""
        if self._period and (self.trainer.iter + 1) % self._period == 0:
            for name, norm in self._norms.items():
                self._handles.append(norm.register_forward_hook(self._look(name)))

    def after_step(self) -> None:
        """Write the statistics of a measured step."""
        if not self._handles:
            return
        self._leave()
        values = {
            f"{name}/{key}": value
            for name, norm in self._norms.items()
            for key, value in self._measured(name, norm).items()
        }
        if values:
            numbers = torch.stack([value.float() for value in values.values()]).tolist()
            values = dict(zip(values, numbers, strict=True))
        for name, norm in self._norms.items():
            values |= {f"{name}/{key}": value for key, value in norm.scalars().items()}
        for key, value in values.items():
            self.trainer.storage.put_scalar(key, value, smoothing_hint=False)
        self._sums.clear()

    def after_train(self) -> None:
        """Remove the hooks that a failed step may have left."""
        self._leave()

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _look(self, name: str) -> Callable:
        @torch.no_grad()
        def look(norm: NormLayer, inputs: tuple, output: torch.Tensor) -> None:
            seen = torch.stack([self._sum(norm, part) for part in parts(output)]).sum(0)
            # A shared head is called once per level, and once per part of an accumulated batch.
            self._sums[name] = self._sums[name] + seen if name in self._sums else seen

        return look

    @staticmethod
    def _sum(norm: NormLayer, output: torch.Tensor) -> torch.Tensor:
        """The sum of squares of an output, how many values are clamped, and how many there are."""
        clamped = norm.clamped(output)
        square = output.float().square().sum()
        held = torch.zeros_like(square) if clamped is None else clamped.sum()
        return torch.stack([square, held, torch.full_like(square, output.numel())]).double()

    @torch.no_grad()
    def _measured(self, name: str, norm: NormLayer) -> dict[str, torch.Tensor]:
        """Numbers by statistic, still on the device."""
        values = {}
        if name in self._sums:
            square, held, count = self._sums[name].unbind()
            count = count.clamp(min=1)  # no region reached this head
            if norm.activation in CLAMPING:
                values["clamped"] = held / count
            values["rms"] = (square / count).sqrt()
        gamma = getattr(norm, "weight", None)
        if isinstance(gamma, nn.Parameter):
            values["gamma_mean"], values["gamma_min"] = gamma.mean(), gamma.min()
            values["gamma_max"] = gamma.abs().max()
        if norm.tau is not None:
            values["tau_mean"] = norm.tau.mean()
        return values


class NormPage(HookBase):
    """Draws a run's `norms.html` when it ends or is stopped, after the writers have closed.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def after_train(self) -> None:
        """Draw the page; a failure to draw does not fail the run."""
        from normdet.engine.norm_page import write_norm_page  # imports matplotlib

        try:
            write_norm_page(self._folder)
        except (NormdetError, OSError) as error:
            logger.info("no norms.html: %s", error)
