"""Make a network deployable, without the parts that only training needs.

Weights under WS, AWS, WN or spectral norm become plain weights. A norm that is a fixed affine at
test time (BN, FrozenBN) is folded into the convolution before it.
"""

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers import TLU, NormLayer, Reparametrized
from ..layers.reparametrized import out_dim, plain_class, with_affine
from ..ops.reference import frozen_affine
from ..surgery.sites import Finder, Site

# Norms of others that are `(x - mean) / sqrt(var + eps) * weight + bias` at test time.
_AFFINE = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)


@torch.no_grad()
def deployable(model: nn.Module, *, norms: bool = True) -> nn.Module:
    """A copy in inference mode, with plain weights and with fixed norms in the convolutions.

    Its function is that of the model to rounding.

    Args:
        norms: also fold norms. Otherwise only weights change, and the norms keep their keys.
    """
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad = False
    for module in list(model.modules()):
        plain_weight(module)
    if norms:
        for site in Finder(model).sites.values():
            fold_norm(site)
    return model


def plain_weight(module: nn.Module) -> None:
    """Replace a layer's learned weight by the weight in use, in place, and remove its method."""
    if parametrize.is_parametrized(module, "weight"):  # by torch, in a user's own network
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        return
    if not isinstance(module, Reparametrized):
        return
    weight = module.used_weight().detach().clone()
    if isinstance(module, nn.Conv2d):
        for name in ("norm", "activation"):
            if not hasattr(module, name):
                setattr(module, name, None)
        module.__class__ = Conv2d  # detectron2's, which calls its own norm and activation
    else:
        module.__class__ = plain_class(module)
    del module.reweight
    module.weight = nn.Parameter(weight, requires_grad=False)


def fold_norm(site: Site) -> None:
    """Fold a norm into the convolution before it, in place, if it is fixed and there is one."""
    norm, conv = site.norm, site.conv
    alone = len(site.places) == 1 == len(site.conv_places)
    known = isinstance(conv, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    if not (_is_fixed(norm) and alone and known) or (out_dim(conv) == 1 and conv.groups > 1):
        return
    scale, shift = affine(norm)
    weight, bias = with_affine(conv.weight, conv.bias, scale, shift, out_dim(conv))
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    (owner, name), activation = site.places[0], _activation(norm)
    if owner is conv:
        conv.norm = None
        conv.activation = conv.activation if activation is None else activation
    else:
        owner._modules[name] = nn.Identity() if activation is None else activation


def _is_fixed(norm: nn.Module) -> bool:
    """Whether a norm in test mode is a fixed affine."""
    if isinstance(norm, NormLayer):
        return norm.fixed_affine() is not None
    return isinstance(norm, _AFFINE) and norm.running_mean is not None


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift `(C,)` of a fixed norm, computed in float64."""
    own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    scale, shift = frozen_affine(*(None if p is None else p.double() for p in own), norm.eps)
    return scale.to(norm.running_mean.dtype), shift.to(norm.running_mean.dtype)


def _activation(norm: nn.Module) -> nn.Module | None:
    """The activation that a norm computes behind its affine."""
    if not isinstance(norm, NormLayer) or norm.activation is None:
        return getattr(norm, "act", None)
    if norm.activation == "ReLU":
        return nn.ReLU()
    tlu = TLU(norm.num_features)
    tlu.tau = nn.Parameter(norm.tau.detach().clone(), requires_grad=False)
    return tlu
