"""The second rung: what single images do to the norms, measured on a few without labels."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normdet.layers import WSConv2d
from normdet.layers.moments import instance_moments
from normdet.modeling.per_level import PerLevelNorm

from .channels import Samples
from .sites import Site, affine_of, find_sites, linear
from .standardized import Patches
from .views import Views


@contextmanager
def _hooked(sites: list[Site], old: bool, act) -> Iterator[None]:
    """Calls `act(site, x)` with the input of each site's layer, in the one network or the other."""
    hooks = []
    for site in sites:
        layer = site.old_layer if old else site.layer

        def hook(layer, inputs, site=site):
            act(site, inputs[0])

        hooks.append(layer.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def measure(
    original: nn.Module, converted: nn.Module, views: Views, images: Tensor
) -> tuple[dict[str, Samples], dict[str, Patches]]:
    """What single examples are before each norm of the original, or where it would stand.

    Args:
        original: in test mode.
        converted: the same network under another norm; not run.
        views: of the original.
        images: `(N, 3, H, W)` pixels.

    Returns:
        By the norm's name, the moments of examples (images, in heads regions), and the inputs of
        convolutions that the converted network standardizes.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    patches: dict[str, Patches] = {}

    def record(site: Site, x: Tensor) -> None:
        if not x.numel():
            return
        mean, var = instance_moments(linear(site.old_layer, x))
        found.setdefault(site.name, []).append((mean, var + mean.square()))
        if isinstance(site.layer, WSConv2d) and site.layer.groups == 1:
            more = Patches.of(site.layer, x)
            patches[site.name] = patches[site.name] + more if site.name in patches else more

    with _hooked(find_sites(original, converted), True, record):
        for batch in images.split(8):
            views(batch, views.regions(batch))
    samples = {
        name: Samples(*map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()
    }
    return samples, patches


@torch.no_grad()
def match_moments(
    sites: list[Site],
    samples: dict[str, Samples],
    views: Views,
    images: Tensor,
    regions: list,
) -> None:
    """Fit each norm's affine, layer after layer, so that its output has the original's moments.

    The converted network's own activations run in, so what earlier norms changed is made good for
    on average: mean and deviation of every channel are those that the original has there. A least
    squares fit would shrink each layer's deviation by what it cannot explain, which adds up.

    Args:
        sites: as :func:`.closed_form.convert_norms` returns them.
        samples: as :func:`measure` returns them.
        views: of the converted network.
        images: `(N, 3, H, W)` pixels, run as one batch.
        regions: of the original's, for the heads.
    """
    seen: set[str] = set()

    def fit(site: Site, x: Tensor) -> None:
        known = samples.get(site.name)
        if site.name in seen or known is None or isinstance(site.norm, PerLevelNorm):
            return
        seen.add(site.name)
        norm = site.norm
        mean, square = known.mean.mean(0), known.square.mean(0)
        scale, shift = affine_of(site, mean, square)
        order = site.order if site.order is not None else torch.arange(len(mean))
        target_mean = (scale * mean + shift)[order]
        target_std = (scale.abs() * (square - mean.square()).clamp(min=0).sqrt())[order]
        # The affine acts on what it is given: run it as the identity and compare.
        activation, tau = norm.activation, norm.tau
        weight, bias = norm.weight.clone(), norm.bias.clone()
        norm.activation, norm.tau = None, None
        norm.weight.fill_(1)
        norm.bias.zero_()
        y = norm(linear(site.layer, x))
        norm.activation, norm.tau = activation, tau
        dims = [0, *range(2, y.dim())]
        var, centre = torch.var_mean(y.float(), dims, correction=0)
        gain = torch.where(weight < 0, -1.0, 1.0) * target_std / var.clamp(min=1e-12).sqrt()
        trusted = var > 1e-10
        norm.weight.copy_(torch.where(trusted, gain, weight))
        norm.bias.copy_(torch.where(trusted, target_mean - gain * centre, bias))

    with _hooked(sites, False, fit):
        views(images, regions)
