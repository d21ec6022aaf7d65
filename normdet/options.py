"""The front door: a norm option's text, such as `FRN+TLU` or `GN+WS`, and what it builds.

An option is composed of what normalizes, what activates (ReLU unless said) and how the
convolution's weight is parametrized: `NORM[+TLU][+WS]`. To add a method, write its layer in
`layers/` and its entry in :data:`METHODS`; config keys, the command line and the tests follow.
"""

import difflib
import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from . import layers
from .errors import NormdetError
from .files.words import listed
from .option_text import FROZEN, text_of, words_of


@dataclass(frozen=True)
class Method:
    """One row of the table of names.

    Attributes:
        name: as written in an option's text.
        kind: `"norm"`, `"activation"`, `"weight"`, or `"init"` for one that takes a norm's place.
        paper: title and arXiv number.
        statistics: what it computes its statistics over.
        cost: memory kept for backward and time, in words.
        when: when to choose it.
        build: a norm's is called as `build(channels, dims, activation, **params)` with `dims` the
            number of spatial dimensions (0 for fully connected); a weight's as
            `build(module, **params)` with a convolution or linear layer, returning its replacement;
            an initialization's builds what takes the place of norms in a residual block.
        params: its parameters and their defaults; they become the config keys
            `MODEL.NORMDET.<NAME>.<PARAM>`.
        needs_batch: whether training needs more than one value per channel in a worker's batch.
        needs_statistics: whether it normalizes by fixed statistics, which come with the weights.
        needs_space: whether it cannot normalize fully connected layers: nothing to average there.
        own_activation: whether a norm has an activation of its own in place of the option's.
        excludes: methods it cannot be combined with, and why.
        takes_plain: whether a weight that was trained without a weight method keeps its function
            when it is loaded under this one.
        traceless: whether the tensors of a weights file do not show that a weight method was used.
        as_bn: a norm that computes what BN does: `"tested"` at test time, `"started"` until it has
            trained.
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
    needs_statistics: bool = False
    needs_space: bool = False
    own_activation: bool = False
    excludes: Mapping[str, str] = field(default_factory=dict)
    takes_plain: bool = False
    traceless: bool = False
    as_bn: str = ""


def _by_dims(one: type, two: type, three: type) -> Callable[..., nn.Module]:
    """A norm with a class per number of spatial dimensions; the 1-D one takes `(N, C)` too."""
    classes = (one, one, two, three)
    return lambda channels, dims, activation, **params: classes[dims](
        channels, activation=activation, **params
    )


def _fixed(cls: type) -> Callable[..., nn.Module]:
    """A norm of fixed statistics, which takes any number of spatial dimensions."""
    return lambda channels, dims, activation, eps: cls(channels, eps, activation)


def _own_activation(build: Callable[..., nn.Module], name: str) -> Callable[..., nn.Module]:
    """A norm whose own activation stands where the option's would."""
    return lambda channels, dims, activation, **params: build(
        channels, dims, name if activation else None, **params
    )


def _evonorm_s0(channels, dims, activation, num_groups: int, eps: float) -> nn.Module:
    return layers.EvoNormS0(layers.groups_for(channels, num_groups), channels, eps, activation)


def _attentive(channels, dims, activation, num_groups: int, **params) -> nn.Module:
    groups = layers.groups_for(channels, num_groups)
    return layers.AttentiveNorm(groups, channels, activation=activation, **params)


def _learned_eps(family: str, value: str, dims: int, allowed: tuple[str, ...]) -> bool:
    if value not in allowed:
        known = listed(map(repr, allowed), "or")
        raise NormdetError(f"MODEL.NORMDET.{family}.LEARNED_EPS is {value!r}: use {known}")
    return value == "always" or (value == "auto" and dims == 0)


def _group_norm(
    channels, dims, activation, num_groups: int, amp_output: str, **params
) -> nn.Module:
    cls = functools.partial(layers.GroupNorm, amp_output=amp_output)
    return _per_example(cls, layers.groups_for(channels, num_groups))(
        channels, dims, activation, **params
    )


def _group_rms(channels, dims, activation, num_groups: int, **params) -> nn.Module:
    groups = layers.groups_for(channels, num_groups)
    return _per_example(layers.GroupRMSNorm, groups)(channels, dims, activation, **params)


def _per_example(cls: type, *groups: int) -> Callable[..., nn.Module]:
    """GN, or a special case of it. They take any number of spatial dimensions."""

    family = getattr(cls, "func", cls).family

    def build(channels, dims, activation, eps: float, learned_eps: str) -> nn.Module:
        learned = _learned_eps(family, learned_eps, dims, ("never", "always"))
        return cls(*groups, channels, eps=eps, activation=activation, learned_eps=learned)

    return build


def _running(cls: type) -> Callable[..., nn.Module]:
    """A norm of batch statistics; one class takes any number of spatial dimensions."""
    return lambda channels, dims, activation, **params: cls(
        channels, dims=dims, activation=activation, **params
    )


def _inplace_abn(channels, dims, activation, act: str, **params) -> nn.Module:
    """Its own activation replaces the option's."""
    allowed = ("leaky_relu", "elu", "identity")
    if act not in allowed:
        known = listed(map(repr, allowed), "or")
        raise NormdetError(f"MODEL.NORMDET.InPlaceABN.ACT is {act!r}: use {known}")
    act = act if activation and act != "identity" else None
    return layers.InPlaceABN(channels, dims=dims, activation=act, **params)


def _frn(channels, dims, activation, eps: float, learned_eps: str) -> nn.Module:
    learned = _learned_eps("FRN", learned_eps, dims, ("auto", "always", "never"))
    cls = (
        layers.FilterResponseNorm1d, layers.FilterResponseNorm1d,
        layers.FilterResponseNorm2d, layers.FilterResponseNorm3d,
    )[dims]  # fmt: skip
    return cls(channels, eps, learned, activation)


_EVONORM_AND_TLU = "EvoNorm is its own activation: there is nothing for TLU to replace"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            FROZEN, "norm",
            paper="Batch Normalization, 1502.03167; frozen as in detectron2",
            statistics="none: the pretrained running averages, fixed",
            cost="nothing kept, one multiply-add",
            when="pretrained backbone, images like ImageNet, nothing to learn: the baseline",
            build=_fixed(layers.FrozenBatchNorm2d), params={"EPS": 1e-5},
            needs_statistics=True, as_bn="tested",
        ),
        Method(
            "AffineBN", "norm",
            paper="Batch Normalization, 1502.03167; in eval mode as mmdetection trains it",
            statistics="none: the pretrained running averages, fixed",
            cost="keeps x; one multiply-add",
            when="as FrozenBN, if the affine should learn: mmdetection's default",
            build=_fixed(layers.AffineBatchNorm2d), params={"EPS": 1e-5},
            needs_statistics=True, as_bn="tested",
        ),
        Method(
            "BN", "norm",
            paper="Batch Normalization, 1502.03167",
            statistics="batch and space, per channel; running averages at test time",
            cost="keeps x; cheap",
            when="16 or more images per GPU",
            build=_by_dims(layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d),
            params={"EPS": 1e-5, "MOMENTUM": 0.1}, needs_batch=True, as_bn="tested",
        ),
        Method(
            "SyncBN", "norm",
            paper="MegDet, 1711.07240",
            statistics="batch of all workers and space; running averages at test time",
            cost="keeps x; a small gather forward, a small all-reduce backward",
            when="small batches on many GPUs that wait for each other anyway",
            build=_by_dims(
                layers.SyncBatchNorm1d, layers.SyncBatchNorm2d, layers.SyncBatchNorm3d
            ),
            params={"EPS": 1e-5, "MOMENTUM": 0.1}, needs_batch=True, as_bn="tested",
        ),
        Method(
            "GN", "norm",
            paper="Group Normalization, 1803.08494",
            statistics="one example: space and a group's channels",
            cost="keeps x; cheap",
            when="one or two images per GPU; the safe choice, with public weights",
            build=_group_norm,
            params={
                "NUM_GROUPS": 32, "EPS": 1e-5, "LEARNED_EPS": "never", "AMP_OUTPUT": "stock",
            },
        ),
        Method(
            "LN", "norm",
            paper="Layer Normalization, 1607.06450",
            statistics="one example: space and all channels",
            cost="keeps x; cheap",
            when="as GN, if channels are few or alike",
            build=_per_example(layers.LayerNorm), params={"EPS": 1e-5, "LEARNED_EPS": "never"},
        ),
        Method(
            "IN", "norm",
            paper="Instance Normalization, 1607.08022",
            statistics="one example: space, per channel",
            cost="keeps x; cheap",
            when="contrast differs between images and should not matter",
            build=_per_example(layers.InstanceNorm),
            params={"EPS": 1e-5, "LEARNED_EPS": "never"}, needs_space=True,
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
            "RMSGN", "norm",
            paper="Group RMS normalization: FRN, 1911.09737, over a group's channels",
            statistics="one example: mean square over space and a group's channels",
            cost="keeps x; one reduction",
            when="as GN, if a group's mean carries information; between FRN and GN",
            build=_group_rms, params={"NUM_GROUPS": 32, "EPS": 1e-5, "LEARNED_EPS": "never"},
        ),
        Method(
            "AN", "norm",
            paper="Attentive Normalization, 1908.01259, over GN's statistics",
            statistics="as GN; and each channel's, which choose among learned affines",
            cost="keeps x; one pass for the statistics of both",
            when="as GN, where examples differ in kind",
            build=_attentive, params={"NUM_GROUPS": 32, "MIXTURE": 10, "EPS": 1e-5},
            needs_space=True,
        ),
        Method(
            "EvoNormS0", "norm",
            paper="Evolving Normalization-Activation Layers, 2004.02967",
            statistics="one example: variance over space and a group's channels",
            cost="keeps x; no kernel: on a CPU 20 times GN's time",
            when="as GN, with an activation of its own like SiLU",
            build=_own_activation(_evonorm_s0, "EvoNorm"),
            params={"NUM_GROUPS": 32, "EPS": 1e-5}, own_activation=True,
            excludes={"TLU": _EVONORM_AND_TLU},
        ),
        Method(
            "BRN", "norm",
            paper="Batch Renormalization, 1702.03275",
            statistics="as BN, corrected towards the running averages within limits that open",
            cost="keeps x; as BN",
            when="small batches, long schedules; set WARMUP and OPEN to a fraction of yours",
            build=_running(layers.BatchRenorm),
            params={
                "EPS": 1e-5, "MOMENTUM": 0.01, "R_MAX": 3.0, "D_MAX": 5.0, "WARMUP": 5000,
                "OPEN": 20000, "SYNC": False,
            },
            needs_batch=True, as_bn="tested",
        ),
        Method(
            "BIN", "norm",
            paper="Batch-Instance Normalization, 1805.07925",
            statistics="BN's and IN's, mixed by a learned gate per channel",
            cost="keeps x; one pass for both statistics",
            when="contrast matters in some channels and not in others, batches as for BN",
            build=_running(layers.BatchInstanceNorm),
            params={"EPS": 1e-5, "MOMENTUM": 0.1, "RATE": 10.0, "SYNC": False},
            needs_batch=True, needs_space=True, as_bn="started",
        ),
        Method(
            "SwitchNorm", "norm",
            paper="Switchable Normalization, 1806.10779",
            statistics="IN's, LN's and BN's, mixed by learned shares per layer",
            cost="keeps x; one pass for all statistics",
            when="unsure which statistics fit, or batches differ between layers",
            build=_running(layers.SwitchNorm),
            params={"EPS": 1e-5, "MOMENTUM": 0.1, "SYNC": False},
        ),
        Method(
            "AttentiveBN", "norm",
            paper="Attentive Normalization, 1908.01259, over BN's statistics",
            statistics="as BN; and each example's, which choose among learned affines",
            cost="keeps x; one pass for the statistics of both",
            when="as AN, batches as for BN",
            build=_running(layers.AttentiveBatchNorm),
            params={"MIXTURE": 10, "EPS": 1e-5, "MOMENTUM": 0.1, "SYNC": False},
            needs_batch=True, needs_space=True,
        ),
        Method(
            "MABN", "norm",
            paper="Moving Average Batch Normalization, 2001.06838",
            statistics="mean squares of recent batches; running averages at test time",
            cost="keeps x; as BN",
            when="small batches and a test time that folds into the convolution, with WC",
            build=_running(layers.MovingAverageBatchNorm),
            params={
                "EPS": 1e-5, "MOMENTUM": 0.02, "BUFFER": 16, "WARMUP": 100, "OPEN": 1000,
            },
            needs_batch=True, as_bn="tested",
        ),
        Method(
            "EvoNormB0", "norm",
            paper="Evolving Normalization-Activation Layers, 2004.02967",
            statistics="the batch's variance and one example's; running averages at test time",
            cost="keeps x; computes the rest anew in backward",
            when="batches as for BN, with an activation of its own",
            build=_own_activation(_running(layers.EvoNormB0), "EvoNorm"),
            params={"EPS": 1e-5, "MOMENTUM": 0.1, "SYNC": False},
            needs_batch=True, own_activation=True, excludes={"TLU": _EVONORM_AND_TLU},
        ),
        Method(
            "EvalNorm", "norm",
            paper="EvalNorm, 1904.06031",
            statistics="trains as BN; at test time an example's own, blended with running averages",
            cost="keeps x; as BN, one more pass at test time",
            when="a model trained with BN in small batches is worse at test time",
            build=_running(layers.EvalNorm),
            params={"EPS": 1e-5, "MOMENTUM": 0.1, "SYNC": False}, needs_batch=True,
            as_bn="tested",
        ),
        Method(
            "InPlaceABN", "norm",
            paper="In-Place Activated BatchNorm, 1712.02616",
            statistics="as BN",
            cost="keeps its output alone, activation included; inverts both in backward",
            when="as BN, if memory is short; its activation is leaky ReLU",
            build=_inplace_abn,
            params={
                "EPS": 1e-5, "MOMENTUM": 0.1, "ACT": "leaky_relu", "SLOPE": 0.01, "SYNC": False,
            },
            needs_batch=True, own_activation=True,
            excludes={"TLU": "InPlaceABN inverts its activation in backward, which TLU does not "
                      "allow: all values below its threshold become one"},
        ),
        Method(
            "MeanOnlyBN", "norm",
            paper="Weight Normalization, 1602.07868, section 4",
            statistics="the mean over batch and space, per channel; running average at test time",
            cost="keeps x for gamma; one reduction",
            when="with WN, which sets the scale that MeanOnlyBN does not normalize",
            build=_running(layers.MeanOnlyBatchNorm),
            params={"MOMENTUM": 0.1, "SYNC": False}, needs_batch=True,
        ),
        Method(
            "TLU", "activation",
            paper="Thresholded Linear Unit, 1911.09737",
            statistics="none",
            cost="nothing beyond the norm it is fused with",
            when="always with FRN; it replaces ReLU",
        ),
        Method(
            "WS", "weight",
            paper="Weight Standardization, 1903.10520",
            statistics="the weight's own, per output channel",
            cost="nothing of activation size; a pass over the weights each step",
            when="with GN or FRN; weights trained without it do not fit",
            build=layers.standardize, params={"DIALECT": "jhu"}, traceless=True,
        ),
        Method(
            "AWS", "weight",
            paper="Weight Standardization, 1903.10520; adaptive as in DetectoRS, 2006.02334",
            statistics="the weight's own, per output channel",
            cost="nothing of activation size; a pass over the weights each step",
            when="WS on weights trained without it: their function is unchanged at load",
            build=layers.standardize_adaptively, params={"EPS": 1e-5}, takes_plain=True,
        ),
        Method(
            "SWS", "weight",
            paper="Scaled Weight Standardization, 2101.08692",
            statistics="the weight's own, per output channel",
            cost="nothing of activation size; a pass over the weights each step",
            when="as WS, with a gain that is learned; of norm-free networks, and timm's",
            build=layers.standardize_scaled, params={"EPS": 1e-6},
        ),
        Method(
            "WC", "weight",
            paper="Moving Average Batch Normalization, 2001.06838: centred weights",
            statistics="the weight's own mean, per output channel",
            cost="nothing of activation size; a pass over the weights each step",
            when="with MABN, and other norms that subtract no mean",
            build=layers.centralize,
        ),
        Method(
            "WN", "weight",
            paper="Weight Normalization, 1602.07868",
            statistics="the weight's own norm, per output channel; its start, the first batch's",
            cost="nothing of activation size; a pass over the weights each step",
            when="with MeanOnlyBN, which it is meant for",
            build=layers.weight_norm, takes_plain=True,
        ),
        Method(
            "SpectralNorm", "weight",
            paper="Spectral Normalization, 1802.05957",
            statistics="the weight's own largest singular value",
            cost="nothing of activation size; two products with the weight each step",
            when="to bound a layer's gain; a pretrained weight's scale is lost",
            build=layers.spectral_norm, params={"ITERATIONS": 1},
        ),
        Method(
            "Fixup", "init",
            paper="Fixup Initialization, 1901.09321",
            statistics="none: no norm at all",
            cost="nothing beyond the additions of its scalars",
            when="from random weights, to train a residual backbone without norms; FPN and heads "
            "get no norm, keep their biases and start as detectron2 has them",
            build=layers.FixupScalars, params={"RATE": 0.1},
        ),
    )
}  # fmt: skip


_NO_METHOD = Method("", "norm", "", "", "", "")
# Norms of detectron2 that a config or a file may name and that we have no option for.
_OTHER_BNS = ("nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


@dataclass(frozen=True)
class NormOption:
    """A parsed option: builds the norms, activations and weights of a network's layers.

    Attributes:
        norm: a norm's name, or `""` for none.
        activation: `"ReLU"` or `"TLU"`.
        weight: a weight method's name, or `""`.
        init: an initialization's name where there is no norm, or `""`.
        params: `{method: {PARAM: value}}`, as `cfg.MODEL.NORMDET`; defaults where absent.
    """

    norm: str = ""
    activation: str = "ReLU"
    weight: str = ""
    init: str = ""
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        activation = self.activation if self.activation != "ReLU" else ""
        return text_of((self.norm, self.init, activation, self.weight))

    def __bool__(self) -> bool:
        return bool(self.norm)

    def __call__(self, channels: int) -> nn.Module:
        """The norm of `channels`, so that an option can be given as detectron2's `norm=`.

        detectron2's blocks use ReLU and plain weights, so they refuse an option with TLU or a
        weight method; see :func:`normdet.normalize`.
        """
        return self.build_norm(channels)

    @property
    def tests_as_bn(self) -> bool:
        """Whether its norm computes what BN does at test time."""
        return self.norm in _OTHER_BNS or self._method.as_bn == "tested"

    @property
    def starts_as_bn(self) -> bool:
        """Whether BN's weights keep their function under its norm."""
        return self.tests_as_bn or self._method.as_bn == "started"

    @property
    def needs_batch(self) -> bool:
        """Whether its norm trains on the statistics of a batch."""
        return self.norm in _OTHER_BNS or self._method.needs_batch

    @property
    def needs_statistics(self) -> bool:
        """Whether its norm normalizes by fixed statistics, which come with the weights."""
        return self._method.needs_statistics

    @property
    def weight_method(self) -> Method:
        """Its weight method's row of the table; an empty one if it has none."""
        return METHODS.get(self.weight, _NO_METHOD)

    @property
    def brings_activation(self) -> bool:
        """Whether its norm has an activation of its own in place of the option's."""
        return self._method.own_activation

    @property
    def _method(self) -> Method:
        return METHODS.get(self.norm, _NO_METHOD)

    def build_norm(
        self, channels: int, *, activate: bool = False, dims: int = 2, levels: int = 1
    ) -> nn.Module:
        """The norm of a layer with `channels` outputs.

        Args:
            activate: fuse the option's activation behind it.
            dims: spatial dimensions, 0 for fully connected `(N, C)`.
            levels: how many maps the layer is applied to in turn. Each has its own batch
                statistics.

        Raises:
            NormdetError: the norm cannot normalize such a layer.
        """
        method = METHODS[self.norm]
        if method.needs_space and dims == 0:
            raise NormdetError(
                f"{self.norm} has nothing to average where layers are fully connected: use LN"
            )
        activation = self.activation if activate else None
        module = method.build(channels, dims, activation, **self._params(self.norm))
        module.option = str(self)
        if levels > 1 and module.batch_statistics:
            # EvoNorm activates before the affine that the levels share, the others behind it.
            first = activate and isinstance(module, layers.EvoNormB0)
            alike = (self.build_norm(channels, activate=first, dims=dims) for _ in range(levels))
            module = layers.PerLevelNorm(alike, None if first else activation)
            module.option = str(self)
        return module

    def build_scalars(self, channels: int, *, activate: bool = False, **which: bool) -> nn.Module:
        """What an initialization puts in a residual block in place of a norm.

        Args:
            activate: fuse the option's activation.
            which: see :class:`normdet.layers.FixupScalars`.
        """
        activation = self.activation if activate else None
        build = METHODS[self.init].build
        module = build(channels, activation, **which, **self._params(self.init))
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
    """The names of all methods of a kind: `"norm"`, `"activation"`, `"weight"` or `"init"`."""
    return [method.name for method in METHODS.values() if method.kind == kind]


def valid_options() -> list[str]:
    """Every text :func:`parse` takes, modifiers in their usual order."""
    composed = itertools.product(
        names("norm"), ("", *names("activation")), ("", *names("weight"))
    )
    return [text_of(words) for words in composed if not _exclusions(words)] + names("init")


def parse(text: str, params: Mapping[str, Mapping[str, Any]] | None = None) -> NormOption:
    """Read an option such as `"GN+WS"`; `""` is the option of no norm.

    Args:
        text: `NORM`, then any of `+TLU` and one weight method such as `+WS`; or an initialization
            alone.
        params: see :class:`NormOption`.

    Raises:
        NormdetError: on unknown or meaningless text, with the reason and the nearest valid option.
    """
    if not isinstance(text, str):
        raise NormdetError(f"a norm option is text such as 'GN+WS', got {text!r}")
    return replace(_parsed(text), params=params or {})


def read_stated(text: str) -> NormOption:
    """An option as a weights file or a stock config states it; refuses nothing.

    A text that is no option of ours is taken for the name of a norm, such as `nnSyncBN`.
    """
    try:
        return parse(text)
    except NormdetError:
        return NormOption(norm=text)


@functools.cache
def _parsed(text: str) -> NormOption:
    chosen: dict[str, str] = {}
    for name in words_of(text):
        method = METHODS.get(name)
        if method is None:
            raise _refusal(text, f"{name!r} is no norm, activation or weight method")
        if "init" in chosen or (chosen and method.kind == "init"):
            alone = name if method.kind == "init" else chosen["init"]
            raise _refusal(text, f"{alone} is an initialization without norms and stands alone")
        if not chosen and method.kind not in ("norm", "init"):
            raise _refusal(text, f"{name} modifies a norm, which comes first")
        if method.kind in chosen:
            raise _refusal(text, f"{chosen[method.kind]} and {name} exclude each other")
        chosen[method.kind] = name
    for reason in _exclusions(chosen.values()):
        raise _refusal(text, reason)
    return NormOption(**chosen)


def _exclusions(chosen: Collection[str]) -> list[str]:
    """Why these methods do not go together, if they do not."""
    excludes = [METHODS[name].excludes for name in chosen if name]
    return [reason for rule in excludes for other, reason in rule.items() if other in chosen]


def _refusal(text: str, reason: str) -> NormdetError:
    norms = [METHODS[name] for name in names("norm")]
    canonical = {m.paper.split(",")[0].upper().replace(" ", ""): m.name for m in norms}
    canonical |= {option.upper(): option for option in valid_options()}
    parts = dict.fromkeys(words_of(text.upper().replace("_", "+")))
    wanted = text_of(sorted(parts, key=_rank))
    close = difflib.get_close_matches(wanted, canonical, n=1, cutoff=0.0)
    nearest = canonical[close[0]]
    return NormdetError(f"unknown norm option {text!r}: {reason}; did you mean {nearest!r}?")


def _rank(part: str) -> int:
    kinds = ("norm", "init", "activation", "weight")
    return next((kinds.index(m.kind) for m in METHODS.values() if m.name.upper() == part), 0)


def table() -> list[dict[str, str]]:
    """The table of methods as rows of text, for `normdet norms`."""
    columns = ("name", "kind", "paper", "statistics", "cost", "when")
    return [{column: getattr(m, column) for column in columns} for m in METHODS.values()]
