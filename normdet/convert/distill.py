"""The third rung: a few hundred steps that fit the converted network to the original's features."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers import after_step
from normdet.weights import load_file, save_file

from .sites import Site
from .views import Views

# Steps between two saves of the state.
SAVE_EVERY = 25


@dataclass(frozen=True)
class Schedule:
    """How a network is distilled.

    Attributes:
        steps: optimizer steps, each on one batch.
        rate: Adam's learning rate for convolutions; norms learn at ten times this. It rises over
            the first tenth and falls as a cosine.
        all_weights: fit every weight; else the norms' parameters alone.
    """

    steps: int = 300
    rate: float = 1e-4
    all_weights: bool = False


def relative_errors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Squared distance of each output from the original's, relative to the original's square."""
    return {
        name: (ours[name] - value).square().sum() / value.square().sum().clamp(min=1e-12)
        for name, value in theirs.items()
        if value.numel()
    }


def distill(
    original: Views,
    converted: Views,
    sites: list[Site],
    batch: Callable[[int], Tensor],
    schedule: Schedule,
    state_file: Path,
) -> list[float]:
    """Fit the converted network's outputs, part by part, to the original's on unlabelled images.

    Both run in test mode, so running averages do not change. On a CPU the result is deterministic
    for given batches. A stopped run resumes from `state_file`, which is removed at the end.

    Args:
        original: the network to fit to.
        converted: fitted in place.
        sites: its norms.
        batch: the pixels `(N, 3, H, W)` of a step, a function of the step alone.
        schedule: how.
        state_file: a `.pth` that holds the state of an unfinished run.

    Returns:
        The loss of every step since the start or the state taken up: the mean relative squared
        error over the outputs.

    Raises:
        NormdetError: the loss is not finite, or `state_file` is of another run.
    """
    model = converted.model
    groups = _groups(model, sites, schedule)
    optimizer = torch.optim.Adam(groups)
    start = _resume(state_file, model, optimizer, schedule)
    losses = []
    was_training = model.training
    model.eval()
    try:
        for step in _shown(range(start, schedule.steps), schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * _rate(step, schedule.steps)
            images = batch(step)
            regions = original.regions(images)
            with torch.no_grad():
                wanted = original(images, regions)
            errors = relative_errors(converted(images, regions), wanted)
            loss = torch.stack(list(errors.values())).mean()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NormdetError(
                    f"distillation: the loss is {losses[-1]} at step {step}: lower --rate"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after_step(model)
            if (step + 1) % SAVE_EVERY == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                save_file({**state, "step": step + 1, "schedule": str(schedule)}, state_file)
    finally:
        model.train(was_training)
    state_file.unlink(missing_ok=True)
    return losses


def _groups(model: nn.Module, sites: list[Site], schedule: Schedule) -> list[dict]:
    """The parameters to fit; the others are frozen."""
    norms = [p for site in sites for p in site.norm.parameters()]
    # A join has a threshold of its own under TLU.
    taus = [p for name, p in model.named_parameters() if name.endswith(".tau")]
    own = {id(p): p for p in (*norms, *taus)}
    for parameter in model.parameters():
        parameter.requires_grad_(schedule.all_weights or id(parameter) in own)
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": list(own.values()), "base": 10 * schedule.rate, "lr": 0.0}]
    if rest:
        groups.append({"params": rest, "base": schedule.rate, "lr": 0.0})
    if not any(group["params"] for group in groups):
        raise NormdetError("there is nothing to distill: the norms have no parameters to fit")
    return groups


def _rate(step: int, steps: int) -> float:
    rise = min(1.0, (step + 1) / max(1, steps // 10))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _shown(steps: range, total: int) -> Iterator[int]:
    return track(
        steps, "distill", total=total, completed=steps.start, disable=not os.isatty(1),
        transient=True,
    )  # fmt: skip


def _resume(state_file: Path, model: nn.Module, optimizer, schedule: Schedule) -> int:
    if not state_file.exists():
        return 0
    state = load_file(state_file)
    if state.get("schedule") != str(schedule):
        raise NormdetError(
            f"{state_file} is of a run with other settings: remove it, or repeat those"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
