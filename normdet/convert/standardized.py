"""Filters with zero sum, which standardization needs, that compute almost what the old ones did.

Standardization removes a filter's mean, and with it a multiple of the sum of its inputs. Inputs
vary much along some directions and little along others. The mean is removed along those that vary
least, which changes the output least: with the inputs' covariance `S`,
`w' = w - S^-1 1 (1^T w) / (1^T S^-1 1)` minimizes `Var((w' - w)^T x)` under `1^T w' = 0`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normdet.layers import Reparametrized


def loses_sums(layer: nn.Module) -> bool:
    """Whether a layer's weight method removes the sum of each filter.

    Not for grouped convolutions, whose filters see only some of the inputs.
    """
    plain = isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1
    return plain and isinstance(layer, Reparametrized) and layer.reweight.zero_sum


# Added to the covariance, as a share of its mean diagonal: bounds weights on constant inputs.
_RIDGE = 1e-2
# The most patches that one input adds to the covariance.
_PATCHES = 2048


@dataclass
class Patches:
    """Moments of the inputs of a convolution's filters.

    Attributes:
        count: of patches.
        total: their sum, `(C_in * kH * kW,)`.
        products: the sum of their outer products.
    """

    count: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.Linear, x: Tensor) -> "Patches":
        """Of `(N, C_in, H, W)`, or `(N, C_in)` in a linear layer.

        A sample, evenly spaced, as the products cost its size squared.
        """
        columns = x
        if isinstance(layer, nn.Conv2d):
            columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            columns = columns.transpose(1, 2).flatten(0, 1)
        step = -(-len(columns) // _PATCHES)
        # An odd step, since an even one would take the same columns of the image in every row.
        columns = columns[:: step | 1].double()
        return cls(len(columns), columns.sum(0), columns.T @ columns)

    def __add__(self, other: "Patches") -> "Patches":
        return Patches(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        return self.products / self.count - self.mean.outer(self.mean)


def sum_to_zero(weight: Tensor, patches: Patches) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The filters `(C_out, C_in, kH, kW)` with their sums removed where it matters least.

    Returns:
        The new filters; mean and mean square `(C_out,)` of their outputs; and how much less than
        the old ones they give on average, `(C_out,)`.
    """
    old = weight.flatten(1).double()
    covariance = patches.covariance
    ridge = _RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    softened = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    ones = old.new_ones(old.shape[1])
    along = torch.linalg.solve(softened, ones)
    new = old - (old.sum(1) / along.sum()).outer(along)
    mean = new @ patches.mean
    square = ((new @ covariance) * new).sum(1).clamp(min=0) + mean.square()
    lacks = (old - new) @ patches.mean
    return (
        new.view(weight.shape).to(weight),
        *(value.to(weight) for value in (mean, square, lacks)),
    )
