"""Time normalizations with their activation, one at a time, at a detector's shapes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normdet import ops
from normdet.errors import NormdetError
from normdet.lab.bench import measure

# (N, C, H, W). CPU: two images of short side 320; GPU: two of 800 x 1344, and the heads' RoIs.
SHAPES = {
    "cpu": [
        (2, 64, 160, 208),
        (2, 256, 100, 100),
        (2, 256, 80, 104),
        (2, 256, 40, 52),
        (2, 256, 20, 26),
        (2, 256, 10, 13),
        (64, 256, 14, 14),
        (256, 256, 7, 7),
    ],
    "cuda": [
        (2, 64, 400, 672),
        (2, 256, 200, 336),
        (2, 256, 100, 168),
        (2, 512, 100, 168),
        (2, 1024, 50, 84),
        (2, 2048, 25, 42),
        (2, 256, 25, 42),
        (256, 256, 14, 14),
        (1024, 256, 7, 7),
    ],
}
# (C_out, C_in, kH, kW) of convolutions of a ResNet-50 and of its heads.
WEIGHTS = [(64, 64, 3, 3), (256, 256, 3, 3), (2048, 512, 1, 1), (512, 512, 3, 3)]
GROUPS = 32
# The fewest reads and writes of the activation that an operation needs: forward, backward.
TRAFFIC = {"norm": (3, 4), "frozen": (2, 3), "join": (3, 3)}


@dataclass(frozen=True)
class Input:
    """The input on which operations are timed."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    device: str

    def tensor(self) -> Tensor:
        x = torch.randn(self.shape, device=self.device).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@dataclass(frozen=True)
class Provider:
    """One way to compute an operation: its name, its call on `x`, and its parameters."""

    name: str
    call: Callable[[Tensor], Tensor]
    own: list[Tensor]


def providers(given: Input, compiled: bool) -> Iterator[tuple[str, list[Provider]]]:
    """Every operation on an activation with its providers, ours first."""
    channels, device = given.shape[1], given.device
    make = _Makers(channels, device, compiled)
    batch, batch_relu = make.torch_bn()
    yield "FRN+TLU", [*make.frn("TLU"), make.torch_gn(GROUPS), batch_relu, make.frozen_stock()]
    yield "FRN", [*make.frn(None), batch]
    for name, groups in (("GN+ReLU", GROUPS), ("LN+ReLU", 1), ("IN+ReLU", channels)):
        yield name, [*make.group(groups), make.torch_gn(groups), batch_relu]
    yield "FrozenBN+ReLU", make.frozen()
    yield "residual join", make.join(given.tensor())


def weight_providers(given: Input, compiled: bool) -> Iterator[tuple[str, list[Provider]]]:
    """Weight standardization of a convolution's weight, without the convolution itself."""
    make = _Makers(given.shape[0], given.device, compiled)
    yield "WS", make.standardize()


class _Makers:
    """The providers of each operation, over parameters that all of them share."""

    def __init__(self, channels: int, device: str, compiled: bool):
        self.channels, self.device, self.compiled = channels, device, compiled
        self.weight, self.bias, self.tau = (
            nn.Parameter(torch.full((channels,), value, device=device)) for value in (1.0, 0.0, 0.0)
        )
        self.own = [self.weight, self.bias, self.tau]
        self.fixed = [t.detach() for t in (self.weight, self.bias, self.bias, self.weight)]

    def _compile(self, call: Callable[[Tensor], Tensor], own: list[Tensor]) -> list[Provider]:
        if not self.compiled:
            return []
        return [Provider("torch.compile", torch.compile(call, dynamic=False), own)]

    def frn(self, activation: str | None) -> list[Provider]:
        tau = self.tau if activation else None
        own = self.own[: 3 if activation else 2]

        def ours(x: Tensor, backend: str) -> Tensor:
            return ops.frn_tlu(x, *own[:2], tau, eps=1e-6, activation=activation, backend=backend)

        kinds = ("auto", "eager", "reference")
        rows = [Provider(f"normdet {b}", partial(ours, backend=b), own) for b in kinds]
        rows += self._compile(partial(_plain_frn, own=own), own)
        return rows + self._timm_frn(activation)

    def _timm_frn(self, activation: str | None) -> list[Provider]:
        try:
            from timm.layers import FilterResponseNormAct2d, FilterResponseNormTlu2d
        except ImportError:
            return []
        if activation:
            layer = FilterResponseNormTlu2d(self.channels)
        else:
            layer = FilterResponseNormAct2d(self.channels, apply_act=False)
        layer = layer.to(self.device)
        return [Provider("timm", layer, list(layer.parameters()))]

    def torch_gn(self, groups: int) -> Provider:
        own = self.own[:2]

        def group_relu(x: Tensor) -> Tensor:
            return F.relu_(F.group_norm(x, groups, *map(_like(x), own)))

        return Provider("nn.GroupNorm+ReLU", group_relu, own)

    def torch_bn(self) -> tuple[Provider, Provider]:
        """Without and with ReLU."""
        layer = nn.BatchNorm2d(self.channels).to(self.device)
        own = [*layer.parameters(), *layer.buffers()]
        return (
            Provider("nn.BatchNorm2d", layer, own),
            Provider("nn.BatchNorm2d+ReLU", lambda x: F.relu_(layer(x)), own),
        )

    def group(self, groups: int) -> list[Provider]:
        own = self.own[:2]

        def ours(x: Tensor, backend: str) -> Tensor:
            return ops.group_norm_act(x, groups, *own, eps=1e-5, activation="ReLU", backend=backend)

        kinds = ("auto", "eager")
        rows = [Provider(f"normdet {b}", partial(ours, backend=b), own) for b in kinds]
        rows += self._compile(self.torch_gn(groups).call, own)
        return rows + self._timm_group(groups)

    def _timm_group(self, groups: int) -> list[Provider]:
        try:
            from timm.layers import GroupNormAct
        except ImportError:
            return []
        layer = GroupNormAct(self.channels, num_groups=groups).to(self.device)
        return [Provider("timm", layer, list(layer.parameters()))]

    def frozen_stock(self) -> Provider:
        return Provider("FrozenBN+ReLU", partial(self._frozen, backend="reference"), self.fixed)

    def _frozen(self, x: Tensor, backend: str) -> Tensor:
        return ops.frozen_bn_act(x, *self.fixed, eps=1e-5, activation="ReLU", backend=backend)

    def frozen(self) -> list[Provider]:
        ours = Provider("normdet auto", partial(self._frozen, backend="auto"), self.fixed)
        plain = partial(_plain_frozen, fixed=self.fixed)
        return [ours, self.frozen_stock(), *self._compile(plain, self.fixed)]

    def join(self, other: Tensor) -> list[Provider]:
        def with_tlu(x: Tensor, backend: str) -> Tensor:
            return ops.add_act(x, other, self.tau, activation="TLU", backend=backend)

        def with_relu(x: Tensor) -> Tensor:
            return ops.add_act(x, other, activation="ReLU")

        return [
            Provider("normdet auto, TLU", partial(with_tlu, backend="auto"), [self.tau]),
            Provider("normdet reference, TLU", partial(with_tlu, backend="reference"), [self.tau]),
            Provider("normdet auto, ReLU", with_relu, []),
            Provider("x + y, relu_", lambda x: F.relu_(x + other), []),
        ]

    def standardize(self) -> list[Provider]:
        kinds = ("auto", "reference")
        rows = [
            Provider(f"normdet {b}", partial(ops.standardize_weight, backend=b), []) for b in kinds
        ]
        rows += self._compile(_plain_standardize, [])
        return [*rows, Provider("timm", self._timm_standardize, [])]

    def _timm_standardize(self, weight: Tensor) -> Tensor:
        """Standardize a weight as timm's StdConv2d does at every forward."""
        rows = weight.reshape(1, len(weight), -1)
        return F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(
            weight
        )


def _spread(p: Tensor, x: Tensor) -> Tensor:
    return p.to(x.dtype).view(1, -1, 1, 1)


def _plain_frn(x: Tensor, own: list[Tensor]) -> Tensor:
    """FRN, with TLU if there is a tau, in the form that torch.compile optimizes best."""
    weight, bias, *tau = (_spread(p, x) for p in own)
    mean_square = x.float().square().mean((2, 3), keepdim=True)
    scale = torch.rsqrt(mean_square + 1e-6).to(x.dtype)
    y = x * scale * weight + bias
    return torch.maximum(y, tau[0]) if tau else y


def _plain_frozen(x: Tensor, fixed: list[Tensor]) -> Tensor:
    """Frozen BN and ReLU, written the same way."""
    weight, bias, mean, var = fixed
    scale = weight * (var + 1e-5).rsqrt()
    return F.relu(x * _spread(scale, x) + _spread(bias - mean * scale, x))


def _plain_standardize(weight: Tensor) -> Tensor:
    """Weight standardization as its authors write it."""
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / (centred.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)


def _like(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Parameters for group_norm: CUDA's needs them in the input's dtype, the CPU's takes fp32."""
    return (lambda p: p.to(x.dtype)) if x.is_cuda else (lambda p: p)


def rows(
    given: Input, bandwidth: float, seconds: float, compiled: bool, operations=providers
) -> Iterator[dict]:
    """One row per operation, provider and mode.

    Args:
        operations: :func:`providers`, or :func:`weight_providers` where the input is a weight.
    """
    x = given.tensor().requires_grad_()
    dy = given.tensor()
    for op, group in operations(given, compiled):
        forward, both, kept, failed = _prepared(group, x, dy)
        peaks = {
            name: {
                "forward": measure.peak_bytes(forward[name], given.device),
                "both": measure.peak_bytes(both[name], given.device),
            }
            for name in forward
        }
        times = {
            "forward": measure.interleaved(forward, given.device, seconds),
            "both": measure.interleaved(both, given.device, seconds),
        }
        reads = TRAFFIC["join" if "join" in op else "frozen" if "Frozen" in op else "norm"]
        ideal = {"forward": reads[0], "backward": reads[1], "both": sum(reads)}
        for name in forward:
            low, median, high = measure.quartiles(times["forward"][name])
            total = measure.quartiles(times["both"][name])
            # Backward needs a forward first: its time is that of "both" less that of forward.
            backward = [max(0.0, t - median) for t in total]
            for mode, (a, b, c) in (
                ("forward", (low, median, high)),
                ("backward", backward),
                ("both", total),
            ):
                share = ideal[mode] * x.nbytes / (b * bandwidth) if b > 0 else None
                yield _row(given, op, name) | {
                    "mode": mode,
                    "median_ms": round(b, 4),
                    "q25_ms": round(a, 4),
                    "q75_ms": round(c, 4),
                    "kept_bytes": kept[name],
                    "peak_bytes": peaks[name].get(mode),  # of backward: no more than of both
                    "share_of_copy_bandwidth": None if share is None else round(share, 3),
                }
        for name, reason in failed.items():
            yield _row(given, op, name) | {"mode": f"failed: {reason}"}


def _prepared(group: list[Provider], x: Tensor, dy: Tensor) -> tuple[dict, dict, dict, dict]:
    """By provider: its forward, forward with backward, bytes kept, or the reason of its failure."""
    forward, both, kept, failed = {}, {}, {}, {}
    for provider in group:

        def run(provider=provider):
            return provider.call(x)

        def step(run=run, provider=provider):
            x.grad = None
            for p in provider.own:
                p.grad = None
            run().backward(dy)

        try:
            kept[provider.name] = measure.kept_bytes(run, provider.own)
            step()
        except (RuntimeError, NormdetError) as error:  # goes into the table
            failed[provider.name] = str(error).strip().splitlines()[0][:80]
            continue
        forward[provider.name], both[provider.name] = run, step
    return forward, both, kept, failed


def _row(given: Input, op: str, provider: str) -> dict:
    return {
        "op": op,
        "shape": "x".join(map(str, given.shape)),
        "dtype": str(given.dtype).removeprefix("torch."),
        "layout": "channels_last" if given.channels_last else "contiguous",
        "provider": provider,
    }
