"""The first rung: an affine with which the new norm computes on average what the old one did.

The original is `scale * x + shift` per channel. The new norm subtracts `M` and divides by the root
of `V`, which follow from the moments of its input
(:meth:`normdet.layers.NormLayer.expected_moments`). So it gets `gamma = scale * sqrt(V)` and
`beta = shift + scale * M`. For an example that has these moments the function is the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers import GroupNorm, SwitchNorm
from normdet.layers.per_example import PerExampleNorm, StoredMoments
from normdet.layers.per_level import PerLevelNorm
from normdet.layers.reparametrized import learned_weight, out_dim, used_weight
from normdet.modeling.normalized import put_weight

from .channels import Samples, arrange, channel_scales
from .sites import Site, affine_of, as_before, find_sites, stored_moments
from .standardized import Patches, loses_sums, sum_to_zero


@torch.no_grad()
def convert_norms(
    original: nn.Module,
    converted: nn.Module,
    *,
    samples: Mapping[str, Samples] | None = None,
    patches: Mapping[str, Patches] | None = None,
    keep: float = 0.0,
    leave_later: bool = False,
) -> list[Site]:
    """Give `converted` the function of `original` as far as its norms allow, in place.

    Args:
        original: a detector, or any module, under one norm; in test mode.
        converted: the same network under another, as built; only its norms may differ.
        samples: by a norm's name, the moments of single examples there
            (:func:`.calibrate.measure`); else the original's stored statistics are used.
        patches: by a norm's name, the inputs of its layer, if that will be standardized.
        keep: the share of a per-example norm's divisor that its learned epsilon makes the same
            for all examples. 0 is the norm as its authors define it; near 1 it is nearly the
            original. The norms must be built with `LEARNED_EPS "always"`.
        leave_later: keep the original's statistics in the norms at `t = 0`; training anneals them.

    Returns:
        The norms that were converted.

    Raises:
        NormdetError: a norm has no closed form, or no statistics are stored for it.
    """
    _copy(original, converted)
    sites = find_sites(original, converted)
    orders: dict[nn.Module, Tensor] = {}  # the new order of the channels that a layer reads
    for site in sites:
        known = (samples or {}).get(site.name)
        if as_before(site):
            site.norm.load_state_dict(site.old_norm.state_dict(), strict=False)
            continue
        if isinstance(site.norm, PerLevelNorm):
            if not isinstance(site.old_norm, PerLevelNorm):
                raise NormdetError(f"{site.name}: statistics of each level are not to be had")
            continue  # copied with the rest
        inputs = (patches or {}).get(site.name)
        expected = _convert_site(site, known, inputs, keep, orders)
        if leave_later and isinstance(site.norm, PerExampleNorm):
            site.norm.stored = StoredMoments(*expected)
    return sites


def _copy(original: nn.Module, converted: nn.Module) -> None:
    """Copy the tensors that both have under one name; the norms are converted afterwards."""
    theirs, ours = original.state_dict(), converted.state_dict()
    shared = {
        key: value for key, value in theirs.items()
        if key in ours and ours[key].shape == value.shape
    }  # fmt: skip
    converted.load_state_dict(shared, strict=False)


def _convert_site(
    site: Site,
    samples: Samples | None,
    patches: Patches | None,
    keep: float,
    orders: dict[nn.Module, Tensor],
) -> tuple[Tensor, Tensor]:
    """Convert one norm and its layer; returns the moments that the norm expects, `(C,)` each."""
    norm, layer = site.norm, site.layer
    mean, square = _moments(site, samples)
    scale, shift = affine_of(site, mean, square)

    weight = learned_weight(site.old_layer).detach()
    if patches is not None:
        weight, mean, square, lacks = sum_to_zero(weight, patches)
        shift = shift + scale * lacks
    if layer in orders:
        weight = weight.index_select(1, orders[layer])
    factors = channel_scales(norm, mean, square, scale, keep > 0)
    if isinstance(norm, GroupNorm) and 1 < norm.num_features // norm.num_groups:
        evened = (mean * factors, square * factors.square())
        examples = samples and Samples(samples.mean * factors, samples.square * factors.square())
        reorder = site.reader is not None and samples is not None
        order, signs = arrange(norm.num_groups, *evened, examples, reorder)
        factors = factors * signs
        if reorder:
            orders[site.reader] = order
    else:
        order = torch.arange(len(mean))
    dim = out_dim(layer)
    put_weight(layer, _per_output(weight, factors, dim).index_select(dim, order))

    gain, removed = _effect(layer, weight.index_select(dim, order), mean[order], dim)
    mean, square, scale, shift = (v[order] for v in (mean, square, scale, shift))
    var = square - mean.square()
    new_mean = gain * mean + removed
    new_square = gain.square() * var + new_mean.square()
    scale = scale / gain
    shift = shift - scale * removed

    _soften(norm, new_mean, new_square, keep)
    norm.put_moments(new_mean, new_square)
    centre, spread = norm.expected_moments(new_mean, new_square)
    norm.weight.copy_(scale * spread.sqrt())
    norm.bias.copy_(shift + scale * centre)
    if isinstance(norm, SwitchNorm):
        norm.rely_on_batch()
    return centre, spread


def _moments(site: Site, samples: Samples | None) -> tuple[Tensor, Tensor]:
    stored = stored_moments(site.old_norm)
    if stored is not None:
        return stored
    if samples is None:
        why = "are folded into its affine" if site.old_norm is not None else "were never taken"
        raise NormdetError(
            f"{site.name}: the original's statistics there {why}, so converting it takes images: "
            "give --images or --dataset"
        )
    return samples.mean.mean(0), samples.square.mean(0)


def _per_output(weight: Tensor, factors: Tensor, dim: int) -> Tensor:
    shape = [1] * weight.dim()
    shape[dim] = -1
    return weight * factors.view(shape)


def _effect(layer: nn.Module, weight: Tensor, mean: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The effect of a weight method on outputs: `(gain, removed)`, `new = gain * old + removed`.

    Standardization removes each filter's mean, and with it a multiple of the sum of the inputs. The
    inputs' average follows from the outputs' average, which is its product with the filters.
    """
    used = used_weight(layer).movedim(dim, 0).flatten(1)
    old = weight.movedim(dim, 0).flatten(1)
    gain = (used * old).sum(1) / old.square().sum(1).clamp(min=torch.finfo(old.dtype).tiny)
    gain = torch.where(gain == 0, torch.ones_like(gain), gain)
    if not loses_sums(layer):
        return gain, torch.zeros_like(gain)
    taps = old.view(len(old), weight.shape[1], -1).sum(2).double()
    inputs = torch.linalg.lstsq(taps, mean.double().unsqueeze(1), driver="gelsd").solution
    rest = (used - gain.unsqueeze(1) * old).view(len(old), weight.shape[1], -1).sum(2)
    return gain, (rest.double() @ inputs).squeeze(1).to(gain)


def _soften(norm: nn.Module, mean: Tensor, square: Tensor, keep: float) -> None:
    if not isinstance(norm, PerExampleNorm) or norm.eps_l is None:
        return
    norm.eps_l.zero_()
    if keep:
        spread = norm.expected_moments(mean, square)[1].mean()
        norm.eps_l.fill_(float(spread) * keep / (1 - keep))
