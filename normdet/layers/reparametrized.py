"""Layers whose weight is computed from the one they learn, by a method of their own."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import NormdetError
from .base import refuse_scripting


class WeightMethod(nn.Module):
    """Base of what computes the weight in use from the weight that is learned.

    A subclass maps one to the other in `forward`. What it learns or keeps beside the weight stands
    in the layer's state dict under `reweight.`, while the learned weight keeps its plain name.

    Attributes:
        starting: whether the next training forward is to call :meth:`start`.
    """

    starting = False

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The method's state for a weight that was trained without it."""
        raise NotImplementedError

    def start(self, layer: "Reparametrized", x: torch.Tensor) -> None:
        """Set a new layer up by its first training input."""

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters weight decay must leave alone: gains."""
        return self.parameters()


class Reparametrized:
    """Mixin of a layer that computes with `reweight(weight)`, then its norm and activation if any.

    A plain weight may be loaded: what the method has beside it is then fitted to that weight.
    Frozen, the method's own statistics rest as well.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        learning = self.training and self.weight.requires_grad
        if self.reweight.training != learning:
            self.reweight.train(learning)
        if learning and self.reweight.starting:
            self.reweight.start(self, x)
        x = linear(self, x, self.reweight(self.weight), self.bias)
        for then in (getattr(self, "norm", None), getattr(self, "activation", None)):
            x = x if then is None else then(x)
        return x

    def __prepare_scriptable__(self):
        """Raises: NormdetError, with a way out; `torch.jit.script` would fail in its own words."""
        way_out = "script normdet.export.deployable(model), whose weights are plain"
        refuse_scripting(self.reweight, way_out)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.shape == self.weight.shape:
            self.reweight.starting = False
            if not any(key.startswith(f"{prefix}reweight.") for key in state_dict):
                fitted = self.reweight.fit(weight)
                state_dict.update({f"{prefix}reweight.{key}": fitted[key] for key in fitted})
        super()._load_from_state_dict(state_dict, prefix, *args)


def linear(
    layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What a Conv2d, ConvTranspose2d or Linear computes with a given weight and bias.

    Its norm and activation, if it has them, stay out.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups,
            layer.dilation,
        )  # fmt: skip
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def out_dim(layer: nn.Module) -> int:
    """Which dimension of its weight holds a layer's outputs."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


class ReparametrizedConv2d(Reparametrized, nn.Conv2d):
    """A convolution `(N, C, H, W)`; see :class:`Reparametrized`."""


class ReparametrizedConvTranspose2d(Reparametrized, nn.ConvTranspose2d):
    """A transposed convolution `(N, C, H, W)`; see :class:`Reparametrized`."""


class ReparametrizedLinear(Reparametrized, nn.Linear):
    """A fully connected layer `(N, C)`; see :class:`Reparametrized`."""


_FORMS = {
    nn.Conv2d: ReparametrizedConv2d,
    nn.ConvTranspose2d: ReparametrizedConvTranspose2d,
    nn.Linear: ReparametrizedLinear,
}


def reparametrize(module: nn.Module, method: type[WeightMethod], **params) -> nn.Module:
    """The module itself, made to compute with `method`; its parameters, norm and activation stay.

    Args:
        method: called as `method(weight, out_dim, **params)`, `out_dim` being the dimension of the
            weight that holds the output channels.

    Raises:
        NormdetError: if the layer is of another kind than Conv2d, ConvTranspose2d and Linear, or
            a grouped transposed convolution, whose weight has no dimension of output channels.
    """
    kind = next((kind for kind in _FORMS if isinstance(module, kind)), None)
    if kind is None or isinstance(module, Reparametrized):
        raise NormdetError(
            f"{method.__name__} has no form for {type(module).__name__}: only for a plain "
            f"{', '.join(kind.__name__ for kind in _FORMS)}"
        )
    if kind is nn.ConvTranspose2d and module.groups > 1:
        raise NormdetError(f"{method.__name__} has no form for a transposed convolution in groups")
    reweight = method(module.weight, out_dim(module), **params)
    module.__class__ = _FORMS[kind]
    module.reweight = reweight
    return module


def per_output(weight: torch.Tensor, out_dim: int) -> tuple[list[int], torch.Tensor]:
    """What all methods reduce over: the dimensions of a filter, and the weight in fp32 or wider."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return [dim for dim in range(weight.dim()) if dim != out_dim], wide
