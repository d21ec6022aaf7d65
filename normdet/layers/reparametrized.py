"""Layers that compute the weight in use from a learned weight, by a weight method."""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import NormdetError
from .base import refuse_scripting


class WeightMethod(nn.Module):
    """Base of a weight method: it computes the weight in use from the weight that is learned.

    A subclass computes it in `forward`. Its own parameters and buffers are in the layer's state
    dict under `reweight.`; the learned weight keeps the name `weight`.

    Attributes:
        starting: whether the next training forward calls :meth:`start`.
        zero_sum: whether the weights in each filter that it makes sum to zero.
    """

    starting = False
    zero_sum = False

    @classmethod
    def of(cls, weight: torch.Tensor, out_dim: int, **params) -> "WeightMethod":
        """The method for a layer's weight, whose `out_dim` holds the output channels."""
        return cls(weight, out_dim, **params)

    def fit(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Fit the method's state to a weight that was trained without it."""
        raise NotImplementedError

    def start(self, layer: "Reparametrized", x: torch.Tensor) -> None:
        """Initialize a new layer by its first training input."""

    def norm_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that weight decay must not change: gains."""
        return self.parameters()


class Reparametrized:
    """Mixin of a layer that computes with `reweight(weight)`.

    A plain weight may be loaded: the method's own state is then fitted to it. Where the weight is
    frozen, the method's own statistics are not updated either.

    Attributes:
        reweight: the :class:`WeightMethod`.
    """

    def used_weight(self, x: torch.Tensor | None = None) -> torch.Tensor:
        """The weight the layer computes with.

        Args:
            x: the input, if this is a forward. The first one in training may start the method.
        """
        weight = learned_weight(self)
        learning = self.training and weight.requires_grad
        if self.reweight.training != learning:
            self.reweight.train(learning)
        if learning and self.reweight.starting and x is not None:
            self.reweight.start(self, x)
        return self.reweight(weight)

    def __prepare_scriptable__(self):
        """Raises: NormdetError, with a way out; `torch.jit.script` would fail in its own words."""
        way_out = "script normdet.export.deployable(model), whose weights are plain"
        refuse_scripting(self.reweight, way_out)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = learned_weight(self)
        if f"{prefix}{_FORMER_NAME}" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}{_FORMER_NAME}")
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.shape == own.shape:
            self.reweight.starting = False
            if not any(key.startswith(f"{prefix}reweight.") for key in state_dict):
                fitted = self.reweight.fit(weight)
                state_dict.update({f"{prefix}reweight.{key}": fitted[key] for key in fitted})
        super()._load_from_state_dict(state_dict, prefix, *args)


# Former versions saved the weight of layers under WS, except Conv2d, under this name.
_FORMER_NAME = "parametrizations.weight.original"


def present_name(key: str) -> str:
    """The present name of a former version's state-dict key."""
    return key.removesuffix(_FORMER_NAME) + "weight" if key.endswith(_FORMER_NAME) else key


def learned_weight(layer: nn.Module) -> torch.Tensor:
    """The weight a layer learns."""
    # The `weight` of a layer with a forward of its own is the one in use.
    return layer._parameters["weight"] if isinstance(layer, Reparametrized) else layer.weight


def used_weight(layer: nn.Module) -> torch.Tensor:
    """The weight a layer computes with, after its weight method."""
    return layer.used_weight() if isinstance(layer, Reparametrized) else layer.weight


def linear(
    layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The output of a convolution, ConvTranspose2d or Linear with a given weight and bias.

    Its norm and activation are not applied.
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
    """The dimension of a layer's weight that holds its outputs."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0


class _Linear(Reparametrized):
    """A layer whose forward is :func:`linear`, then its norm and activation if it has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = linear(self, x, self.used_weight(x), self.bias)
        for then in (getattr(self, "norm", None), getattr(self, "activation", None)):
            x = x if then is None else then(x)
        return x


class ReparametrizedConv1d(_Linear, nn.Conv1d):
    """A convolution `(N, C, L)`; see :class:`Reparametrized`."""


class ReparametrizedConv2d(_Linear, nn.Conv2d):
    """A convolution `(N, C, H, W)`; see :class:`Reparametrized`."""


class ReparametrizedConv3d(_Linear, nn.Conv3d):
    """A convolution `(N, C, D, H, W)`; see :class:`Reparametrized`."""


class ReparametrizedConvTranspose2d(_Linear, nn.ConvTranspose2d):
    """A transposed convolution `(N, C, H, W)`; see :class:`Reparametrized`."""


class ReparametrizedLinear(_Linear, nn.Linear):
    """A fully connected layer `(N, C)`; see :class:`Reparametrized`."""


class _OwnForward(Reparametrized):
    """A layer of another kind, such as a deformable convolution, whose forward reads `weight`.

    So `weight` is the weight in use here. The learned one is saved as `weight`, and
    :func:`learned_weight` gives it.
    """

    @property
    def weight(self) -> torch.Tensor:
        return self.used_weight()


_FORMS = {
    nn.Conv1d: ReparametrizedConv1d,
    nn.Conv2d: ReparametrizedConv2d,
    nn.Conv3d: ReparametrizedConv3d,
    nn.ConvTranspose2d: ReparametrizedConvTranspose2d,
    nn.Linear: ReparametrizedLinear,
}


@functools.cache
def _with_own_forward(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Reparametrized{kind.__name__}", (_OwnForward, kind), {})


def reparametrize(module: nn.Module, method: type[WeightMethod], **params) -> nn.Module:
    """Make a module compute with `method`; its parameters, norm and activation stay.

    Args:
        method: its class, of which :meth:`WeightMethod.of` makes an object.
        params: of the method.

    Raises:
        NormdetError: the layer has no weight; the method starts from data, for which it must run
            the layer, and :func:`linear` cannot; or the layer is a transposed convolution in
            groups, whose weight has no dimension of output channels.
    """
    form = next((form for kind, form in _FORMS.items() if isinstance(module, kind)), None)
    if form is None and method.start is WeightMethod.start and "weight" in module._parameters:
        form = _with_own_forward(type(module))
    if form is None or isinstance(module, Reparametrized):
        raise NormdetError(
            f"{method.__name__} has no form for {type(module).__name__}: only for a plain "
            f"{', '.join(kind.__name__ for kind in _FORMS)}"
        )
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
        raise NormdetError(f"{method.__name__} has no form for a transposed convolution in groups")
    reweight = method.of(module.weight, out_dim(module), **params)
    module.__class__ = form
    module.reweight = reweight
    return module


def with_affine(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    out_dim: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's weight and bias `(C,)` with the affine of its output channels folded in."""
    shape = [1] * weight.dim()
    shape[out_dim] = -1
    bias = shift if bias is None else shift + bias * scale
    return (weight * scale.reshape(shape)).to(weight.dtype), bias.to(weight.dtype)


def plain_class(layer: Reparametrized) -> type[nn.Module]:
    """The class that a layer has without its weight method."""
    return next(kind for kind in type(layer).__mro__ if not issubclass(kind, Reparametrized))


def per_output(weight: torch.Tensor, out_dim: int) -> tuple[list[int], torch.Tensor]:
    """The dimensions of a filter, over which methods reduce, and the weight in fp32 or wider."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return [dim for dim in range(weight.dim()) if dim != out_dim], wide
