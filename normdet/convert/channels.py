"""Scale, sign and order channels before a group norm, without changing the function.

A group norm divides a channel by the moments of its whole group, which follow the image. The
original network's channels can be scaled (signs included) and, inside a block, reordered without
changing what it computes. This is used to make the moments of each group change as little as
possible from image to image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normdet.layers import GroupNorm, InPlaceABN
from normdet.layers.per_example import PerExampleNorm

# The most that a channel is scaled up relative to the layer's others, so a dead channel stays dead.
_RANGE = 100.0
# The weight of a group's mean square, relative to its mean, when channels are arranged.
_SQUARES = 0.25


@dataclass
class Samples:
    """Moments `(N, C)` of single examples: mean and mean square over space."""

    mean: Tensor
    square: Tensor


def channel_scales(norm, mean: Tensor, square: Tensor, gain: Tensor, soft: bool) -> Tensor:
    """What to multiply each channel by, `(C,)`, before the signs of groups are chosen.

    Args:
        norm: the norm that the channels go into.
        mean: of each channel, `(C,)`.
        square: its mean square, `(C,)`.
        gain: the original's scale, for norms whose gain is positive.
        soft: whether one epsilon, about as large as the variance, must fit all channels.
    """
    if isinstance(norm, InPlaceABN):
        return torch.where(gain < 0, -1.0, 1.0)
    if isinstance(norm, GroupNorm) and norm.num_groups < norm.num_features:
        return _even((square - mean.square()).clamp(min=0).sqrt())
    return _even(square.sqrt()) if soft and isinstance(norm, PerExampleNorm) else _ones(mean)


def _ones(like: Tensor) -> Tensor:
    return torch.ones_like(like)


def _even(size: Tensor) -> Tensor:
    """The factors that scale all channels to the layer's (geometric) mean size."""
    positive = size.clamp(min=float(size.max()) / _RANGE)
    if not float(size.max()):
        return _ones(size)
    return positive.log().mean().exp() / positive


def arrange(
    groups: int, mean: Tensor, square: Tensor, samples: Samples | None, reorder: bool
) -> tuple[Tensor, Tensor]:
    """An order and signs of the channels that keep each group's moments steady.

    Channels are taken in turn, the largest first. Each joins the group, with the sign, that keeps
    the group's deviations smallest. A channel's deviations are those of single examples from the
    average. Without examples its mean is used instead, since a change of contrast scales all
    means alike.

    Args:
        groups: how many, of equal size.
        mean: `(C,)`, of the channels after scaling, as are the others.
        square: `(C,)`.
        samples: of single examples.
        reorder: whether channels may change places; else signs alone are chosen.

    Returns:
        `(order, signs)`, both `(C,)`: new channel `i` is `signs[order[i]] * old[order[i]]`.
    """
    var = (square - mean.square()).clamp(min=1e-12)
    if samples is None:
        signed = (mean / var.sqrt()).unsqueeze(1)
        fixed = signed.new_zeros(len(mean), 1)
    else:
        signed = ((samples.mean - samples.mean.mean(0)) / var.sqrt()).T
        fixed = ((samples.square - samples.square.mean(0)) / var).T * _SQUARES**0.5
    signed, fixed = signed.double(), fixed.double()
    size = len(mean) // groups
    sums = signed.new_zeros(groups, signed.shape[1])
    fixed_sums = fixed.new_zeros(groups, fixed.shape[1])
    members: list[list[int]] = [[] for _ in range(groups)]
    signs = torch.ones(len(mean))
    full = torch.zeros(groups, dtype=torch.bool)
    largest = (signed.square().sum(1) + fixed.square().sum(1)).argsort(descending=True, stable=True)
    for channel in largest.tolist():
        own = slice(None) if reorder else slice(channel // size, channel // size + 1)
        now, now_fixed = sums[own], fixed_sums[own]
        # The growth of the squared deviation, without terms that do not depend on the choice.
        grows = 2 * (now_fixed @ fixed[channel]) - 2 * (now @ signed[channel]).abs()
        grows = grows.masked_fill(full[own], torch.inf)
        group = int(grows.argmin()) + (own.start or 0)
        signs[channel] = -1.0 if sums[group] @ signed[channel] > 0 else 1.0
        sums[group] += signs[channel] * signed[channel]
        fixed_sums[group] += fixed[channel]
        members[group].append(channel)
        full[group] = len(members[group]) == size
    order = [channel for group in members for channel in sorted(group)]
    return torch.tensor(order if reorder else range(len(mean))), signs.to(mean)
