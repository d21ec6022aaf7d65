"""The front door: a norm option's text, such as `FRN+TLU` or `GN+WS`, and what it builds.

An option is composed of what normalizes, what activates (ReLU unless said) and how the
convolution's weight is parametrized: `NORM[+TLU][+WS]`. To add a method, write its layer in
`layers/` and its entry in :data:`METHODS`; config keys, the command line and the tests follow.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import layers
from .errors import NormdetError


@dataclass(frozen=True)
class Method:
    """One row of the table of names.

    Attributes:
        name: as it stands in an option's text.
        kind: `"norm"`, `"activation"` or `"weight"`.
        paper: title and arXiv number.
        statistics: what it computes its statistics over.
        cost: memory kept for backward and time, in words.
        when: when to choose it.
        build: a norm's is called as `build(channels, dims, activation, **params)` with `dims` the
            number of spatial dimensions (0 for fully connected); a weight's as
            `build(module, **params)` with a convolution or linear layer, returning its replacement.
        params: its parameters and their defaults; they become the config keys
            `MODEL.NORMDET.<NAME>.<PARAM>`.
        needs_batch: whether training needs more than one value per channel in a worker's batch.
    """

    name: str
    kind: str
    paper: str
    statistics: str
    cost: str
    when: str
    build: Callable[..., nn.Module] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    needs_batch: bool = False


def _by_dims(one: type, two: type, three: type) -> Callable[..., nn.Module]:
    """A norm with a class per number of spatial dimensions; the 1-D one takes `(N, C)` too."""
    classes = (one, one, two, three)
    return lambda channels, dims, activation, **params: classes[dims](
        channels, activation=activation, **params
    )


def _frozen_bn(channels: int, dims: int, activation: str | None, eps: float) -> nn.Module:
    return layers.FrozenBatchNorm2d(channels, eps, activation)


def _group_norm(channels, dims, activation, num_groups: int, eps: float) -> nn.Module:
    groups = layers.groups_for(channels, num_groups)
    return layers.GroupNorm(groups, channels, eps, activation)


def _layer_norm(channels: int, dims: int, activation: str | None, eps: float) -> nn.Module:
    return layers.LayerNorm(channels, eps=eps, activation=activation)


def _instance_norm(channels: int, dims: int, activation: str | None, eps: float) -> nn.Module:
    if dims == 0:
        raise NormdetError("IN has nothing to average where layers are fully connected: use LN")
    return layers.InstanceNorm(channels, eps=eps, activation=activation)


def _frn(channels, dims, activation, eps: float, learned_eps: str) -> nn.Module:
    if learned_eps not in ("auto", "always", "never"):
        raise NormdetError(
            f"MODEL.NORMDET.FRN.LEARNED_EPS is {learned_eps!r}: use 'auto', 'always' or 'never'"
        )
    cls = (
        layers.FilterResponseNorm1d, layers.FilterResponseNorm1d,
        layers.FilterResponseNorm2d, layers.FilterResponseNorm3d,
    )[dims]  # fmt: skip
    learned = learned_eps == "always" or (learned_eps == "auto" and dims == 0)
    return cls(channels, eps, learned, activation)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "FrozenBN", "norm",
            paper="Batch Normalization, 1502.03167; frozen as in detectron2",
            statistics="none: the pretrained running averages, fixed",
            cost="nothing kept, one multiply-add",
            when="pretrained backbone, images like ImageNet, nothing to learn: the baseline",
            build=_frozen_bn, params={"EPS": 1e-5},
        ),
        Method(
            "BN", "norm",
            paper="Batch Normalization, 1502.03167",
            statistics="batch and space, per channel; running averages at test time",
            cost="keeps x; cheap",
            when="16 or more images per GPU",
            build=_by_dims(layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d),
            params={"EPS": 1e-5, "MOMENTUM": 0.1}, needs_batch=True,
        ),
        Method(
            "SyncBN", "norm",
            paper="MegDet, 1711.07240",
            statistics="batch of all workers and space; running averages at test time",
            cost="keeps x; two all-reduces forward, one backward",
            when="small batches on many GPUs that wait for each other anyway",
            build=_by_dims(
                layers.SyncBatchNorm1d, layers.SyncBatchNorm2d, layers.SyncBatchNorm3d
            ),
            params={"EPS": 1e-5, "MOMENTUM": 0.1}, needs_batch=True,
        ),
        Method(
            "GN", "norm",
            paper="Group Normalization, 1803.08494",
            statistics="one example: space and a group's channels",
            cost="keeps x; cheap",
            when="one or two images per GPU; the safe choice, with public weights",
            build=_group_norm, params={"NUM_GROUPS": 32, "EPS": 1e-5},
        ),
        Method(
            "LN", "norm",
            paper="Layer Normalization, 1607.06450",
            statistics="one example: space and all channels",
            cost="keeps x; cheap",
            when="as GN where channels are few or alike",
            build=_layer_norm, params={"EPS": 1e-5},
        ),
        Method(
            "IN", "norm",
            paper="Instance Normalization, 1607.08022",
            statistics="one example: space, per channel",
            cost="keeps x; cheap",
            when="contrast differs between images and should not matter",
            build=_instance_norm, params={"EPS": 1e-5},
        ),
        Method(
            "FRN", "norm",
            paper="Filter Response Normalization, 1911.09737",
            statistics="one example: mean square over space, per channel",
            cost="keeps x; one reduction, the cheapest to compute",
            when="one or two images per GPU, with TLU and a warm-up",
            build=_frn, params={"EPS": 1e-6, "LEARNED_EPS": "auto"},
        ),
        Method(
            "TLU", "activation",
            paper="Thresholded Linear Unit, 1911.09737",
            statistics="none",
            cost="nothing beyond the norm it is fused with",
            when="always behind FRN; in place of ReLU",
        ),
        Method(
            "WS", "weight",
            paper="Weight Standardization, 1903.10520",
            statistics="the weight's own, per output channel",
            cost="nothing of activation size; a pass over the weights each step",
            when="with GN or FRN; weights trained without it do not fit",
            build=layers.standardize, params={"DIALECT": "jhu"},
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class NormOption:
    """A parsed option: builds the norms, activations and weights of a network's layers.

    Attributes:
        norm: a norm's name, or `""` for none.
        activation: `"ReLU"` or `"TLU"`.
        weight: a weight method's name, or `""`.
        params: `{method: {PARAM: value}}`, as `cfg.MODEL.NORMDET`; what is absent has its default.
    """

    norm: str = ""
    activation: str = "ReLU"
    weight: str = ""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        activation = self.activation if self.activation != "ReLU" else ""
        return "+".join(filter(None, (self.norm, activation, self.weight)))

    def __bool__(self) -> bool:
        return bool(self.norm)

    def build_norm(self, channels: int, *, activate: bool = False, dims: int = 2) -> nn.Module:
        """The norm of a layer with `channels` outputs.

        Args:
            activate: fuse the option's activation behind it.
            dims: spatial dimensions, 0 for fully connected `(N, C)`.

        Raises:
            NormdetError: if the norm has no meaning there.
        """
        activation = self.activation if activate else None
        module = METHODS[self.norm].build(channels, dims, activation, **self._params(self.norm))
        module.option = str(self)
        return module

    def build_activation(self, channels: int) -> nn.Module:
        """The option's activation on its own, where no norm comes before it."""
        return layers.TLU(channels) if self.activation == "TLU" else nn.ReLU()

    def build_join(self, channels: int) -> nn.Module:
        """The end of a residual block: `(out, shortcut) -> activation(out + shortcut)`."""
        return layers.AddAct(channels, self.activation)

    def build_weight(self, module: nn.Module) -> nn.Module:
        """A convolution or linear layer with the option's weight; itself if there is none."""
        if not self.weight:
            return module
        return METHODS[self.weight].build(module, **self._params(self.weight))

    def _params(self, name: str) -> dict[str, Any]:
        given = self.params.get(name, {})
        return {key.lower(): given.get(key, value) for key, value in METHODS[name].params.items()}


def names(kind: str) -> list[str]:
    """The names of all methods of a kind: `"norm"`, `"activation"` or `"weight"`."""
    return [method.name for method in METHODS.values() if method.kind == kind]


def valid_options() -> list[str]:
    """Every text :func:`parse` takes, modifiers in their usual order."""
    return [
        norm + activation + weight
        for norm in names("norm")
        for activation in ("", *(f"+{name}" for name in names("activation")))
        for weight in ("", *(f"+{name}" for name in names("weight")))
    ]


def parse(text: str, params: Mapping[str, Mapping[str, Any]] | None = None) -> NormOption:
    """Read an option such as `"GN+WS"`; `""` is the option of no norm.

    Args:
        text: `NORM`, then any of `+TLU` and `+WS`.
        params: see :class:`NormOption`.

    Raises:
        NormdetError: on unknown or meaningless text, with the reason and the nearest valid option.
    """
    if not isinstance(text, str):
        raise NormdetError(f"a norm option is text such as 'GN+WS', got {text!r}")
    chosen: dict[str, str] = {}
    for name in text.split("+") if text else ():
        method = METHODS.get(name)
        if method is None:
            raise _refusal(text, f"{name!r} is no norm, activation or weight method")
        if not chosen and method.kind != "norm":
            raise _refusal(text, f"{name} modifies a norm, which comes first")
        if method.kind in chosen:
            raise _refusal(text, f"{chosen[method.kind]} and {name} exclude each other")
        chosen[method.kind] = name
    return NormOption(**chosen, params=params or {})


def _refusal(text: str, reason: str) -> NormdetError:
    canonical = {option.upper(): option for option in valid_options()}
    parts = dict.fromkeys(part for part in text.upper().replace("_", "+").split("+") if part)
    wanted = "+".join(sorted(parts, key=_rank))
    close = difflib.get_close_matches(wanted, canonical, n=1, cutoff=0.0)
    nearest = canonical[close[0]]
    return NormdetError(f"unknown norm option {text!r}: {reason}; did you mean {nearest!r}?")


def _rank(part: str) -> int:
    kinds = ("norm", "activation", "weight")
    return next((kinds.index(m.kind) for m in METHODS.values() if m.name.upper() == part), 0)


def table() -> list[dict[str, str]]:
    """The table of methods as rows of text, for `normdet norms`."""
    columns = ("name", "kind", "paper", "statistics", "cost", "when")
    return [{column: getattr(m, column) for column in columns} for m in METHODS.values()]
