"""The sites where a network is normalized: each new norm and its counterpart in the original."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers import (
    AttentiveNorm,
    BatchStatistics,
    EvoNormS0,
    FrozenBatchNorm2d,
    NormLayer,
)
from normdet.layers.batch_statistics import of_no_data
from normdet.layers.per_example import PerExampleNorm
from normdet.layers.per_level import PerLevelNorm
from normdet.layers.reparametrized import Reparametrized
from normdet.modeling.normalized import layer_before
from normdet.modeling.resnet import BasicBlock, DeformBottleneckBlock
from normdet.ops.reference import frozen_affine

NORMS = (
    PerExampleNorm, BatchStatistics, FrozenBatchNorm2d, PerLevelNorm, AttentiveNorm, EvoNormS0,
)  # fmt: skip


@dataclass
class Site:
    """A linear layer with the norm behind it, in the original network and in the converted one.

    Attributes:
        name: of the norm, in both.
        layer: the converted network's convolution or linear layer.
        norm: the converted network's norm.
        old_layer: the original's layer.
        old_norm: the original's norm; `None` where it had none.
        reader: the only layer of the converted network that reads the output, if its input
            channels may be reordered with it; else `None`.
    """

    name: str
    layer: nn.Module
    norm: NormLayer
    old_layer: nn.Module
    old_norm: nn.Module | None
    reader: nn.Module | None = None


def find_sites(original: nn.Module, converted: nn.Module) -> list[Site]:
    """Every norm of `converted`, in order of definition, with what `original` has in its place.

    Raises:
        NormdetError: a norm has no layer before it, or has no counterpart.
    """
    modules, old = dict(converted.named_modules()), dict(original.named_modules())
    readers = _readers(converted)
    sites = []
    for name, norm in modules.items():
        within = modules.get(name.rpartition(".")[0])
        if not isinstance(norm, NORMS) or isinstance(within, PerLevelNorm):
            continue
        layer = layer_before(name, modules)
        if layer not in old:
            raise NormdetError(f"{name} has no layer before it in the network it is made from")
        old_norm = old.get(name)
        if old_norm is None and name.endswith(".norm"):
            old_norm = getattr(old[layer], "norm", None)
        sites.append(
            Site(name, modules[layer], norm, old[layer], old_norm, readers.get(modules[layer]))
        )
    return sites


def _readers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Inside a residual block each convolution alone reads the one before it."""
    readers = {}
    for block in model.modules():
        if isinstance(block, BasicBlock) and not isinstance(block, DeformBottleneckBlock):
            chain = [getattr(block, f"conv{k}", None) for k in (1, 2, 3)]
            chain = [conv for conv in chain if conv is not None]
            if all(conv.groups == 1 for conv in chain):
                readers.update(itertools.pairwise(chain))
    return readers


# Norms as the affine they are -------------------------------------------------------------------


def stored_moments(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """Mean and mean square `(C,)` of a norm's inputs in training, if it stores them."""
    if isinstance(norm, PerLevelNorm) and norm[0].tests_as_bn:
        levels = [stored_moments(level) for level in norm]
        if None in levels:
            return None
        return tuple(torch.stack(parts).mean(0) for parts in zip(*levels, strict=True))
    if norm is None or not norm.tests_as_bn:
        return None
    # A frozen norm's statistics may be folded into its affine.
    if isinstance(norm, FrozenBatchNorm2d) and of_no_data(norm.running_mean, norm.running_var):
        return None
    mean = norm.running_mean.clone()
    return mean, norm.running_var + norm.eps + mean.square()


@torch.no_grad()
def affine_of(site: Site, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift `(C,)` of the original's norm for inputs with these moments."""
    norm, bias = site.old_norm, site.old_layer.bias
    bias = torch.zeros_like(mean) if bias is None else bias
    if norm is None:
        return torch.ones_like(mean), bias
    if norm.tests_as_bn:
        statistics = norm.running_mean, norm.running_var
        return frozen_affine(norm.weight, norm.bias, *statistics, norm.eps)
    if isinstance(norm, PerLevelNorm):
        scale = norm.weight * (square - mean.square()).rsqrt()
        return scale, norm.bias - mean * scale
    centre, var = norm.expected_moments(mean, square)
    scale = norm.weight * var.rsqrt()
    return scale, norm.bias - centre * scale


def as_before(site: Site) -> bool:
    """Whether the original's state can be copied as it is: both sides have stored moments."""
    before = site.old_norm is not None and site.old_norm.tests_as_bn
    return before and site.norm.tests_as_bn and not isinstance(site.layer, Reparametrized)
