"""Normalizations with their activation, one at a time, at a detector's shapes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normdet import ops
from normdet.bench import measure
from normdet.errors import NormdetError

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
GROUPS = 32
# Reads and writes of the activation that an operation cannot do without: forward, backward.
TRAFFIC = {"norm": (3, 4), "frozen": (2, 3), "join": (3, 3)}


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    device: str

    def tensor(self) -> Tensor:
        x = torch.randn(self.shape, device=self.device).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@dataclass(frozen=True)
class Provider:
    """One way to compute an operation: its name, the call on `x`, and what it owns."""

    name: str
    call: Callable[[Tensor], Tensor]
    own: list[Tensor]


def providers(case: Case, compiled: bool) -> Iterator[tuple[str, list[Provider]]]:
    """Every operation with its providers, ours first."""
    channels, device = case.shape[1], case.device

    def parameter(value: float) -> nn.Parameter:
        return nn.Parameter(torch.full((channels,), value, device=device))

    weight, bias, tau = parameter(1.0), parameter(0.0), parameter(0.0)
    own = [weight, bias, tau]
    kinds = ["auto", "eager", "reference"]
    dynamo = partial(torch.compile, dynamic=False)

    def frn(x: Tensor, backend: str) -> Tensor:
        return ops.frn_tlu(x, *own, eps=1e-6, activation="TLU", backend=backend)

    rows = [Provider(f"normdet {b}", partial(frn, backend=b), own) for b in kinds]
    if compiled:
        rows.append(Provider("torch.compile", dynamo(partial(_plain_frn, own=own)), own))
    rows += _timm(channels, device)
    norm = nn.GroupNorm(GROUPS, channels).to(device)
    batch = nn.BatchNorm2d(channels).to(device)

    def plain_group(x: Tensor, groups: int) -> Tensor:
        return F.relu_(F.group_norm(x, groups, *map(_like(x), (norm.weight, norm.bias))))

    def group_relu(x: Tensor) -> Tensor:
        return plain_group(x, GROUPS)

    def batch_relu(x: Tensor) -> Tensor:
        return F.relu_(batch(x))

    torch_gn = Provider("nn.GroupNorm+ReLU", group_relu, list(norm.parameters()))
    torch_bn = Provider("nn.BatchNorm2d+ReLU", batch_relu, [*batch.parameters(), *batch.buffers()])
    fixed = [t.detach() for t in (weight, bias, bias, weight)]

    def frozen(x: Tensor, backend: str) -> Tensor:
        return ops.frozen_bn_act(x, *fixed, eps=1e-5, activation="ReLU", backend=backend)

    stock_frozen = Provider("FrozenBN+ReLU", partial(frozen, backend="reference"), fixed)
    yield "FRN+TLU", [*rows, torch_gn, torch_bn, stock_frozen]

    def frn_alone(x: Tensor, backend: str) -> Tensor:
        return ops.frn_tlu(x, weight, bias, eps=1e-6, backend=backend)

    yield "FRN", [Provider(f"normdet {b}", partial(frn_alone, backend=b), own) for b in kinds]

    def group(x: Tensor, backend: str, groups: int = GROUPS) -> Tensor:
        return ops.group_norm_act(
            x, groups, weight, bias, eps=1e-5, activation="ReLU", backend=backend
        )

    rows = [Provider(f"normdet {b}", partial(group, backend=b), own) for b in kinds[:2]]
    if compiled:
        rows.append(Provider("torch.compile", dynamo(group_relu), torch_gn.own))
    yield "GN+ReLU", [*rows, torch_gn, torch_bn]
    for name, groups in (("LN+ReLU", 1), ("IN+ReLU", channels)):
        ours = Provider("normdet auto", partial(group, backend="auto", groups=groups), own)
        plain = partial(plain_group, groups=groups)
        yield name, [ours, Provider("F.group_norm+ReLU", plain, torch_gn.own)]
    rows = [Provider("normdet auto", partial(frozen, backend="auto"), fixed), stock_frozen]
    if compiled:
        rows.append(Provider("torch.compile", dynamo(partial(_plain_frozen, fixed=fixed)), fixed))
    yield "FrozenBN+ReLU", rows
    other = case.tensor()

    def join(x: Tensor, backend: str) -> Tensor:
        return ops.add_act(x, other, tau, activation="TLU", backend=backend)

    def join_relu(x: Tensor) -> Tensor:
        return ops.add_act(x, other, activation="ReLU")

    yield (
        "residual join",
        [
            Provider("normdet auto, TLU", partial(join, backend="auto"), [tau]),
            Provider("normdet reference, TLU", partial(join, backend="reference"), [tau]),
            Provider("normdet auto, ReLU", join_relu, []),
            Provider("x + y, relu_", lambda x: F.relu_(x + other), []),
        ],
    )


def _spread(p: Tensor, x: Tensor) -> Tensor:
    return p.to(x.dtype).view(1, -1, 1, 1)


def _plain_frn(x: Tensor, own: list[Tensor]) -> Tensor:
    """FRN+TLU in the words that torch.compile makes the most of."""
    weight, bias, tau = (_spread(p, x) for p in own)
    mean_square = x.float().square().mean((2, 3), keepdim=True)
    scale = torch.rsqrt(mean_square + 1e-6).to(x.dtype)
    return torch.maximum(x * scale * weight + bias, tau)


def _plain_frozen(x: Tensor, fixed: list[Tensor]) -> Tensor:
    """Frozen BN and ReLU likewise."""
    weight, bias, mean, var = fixed
    scale = weight * (var + 1e-5).rsqrt()
    return F.relu(x * _spread(scale, x) + _spread(bias - mean * scale, x))


def _like(x: Tensor) -> Callable[[Tensor], Tensor]:
    """CUDA's group_norm wants its parameters in the input's dtype; the CPU's takes fp32."""
    return (lambda p: p.to(x.dtype)) if x.is_cuda else (lambda p: p)


def _timm(channels: int, device: str) -> list[Provider]:
    try:
        from timm.layers import FilterResponseNormTlu2d
    except ImportError:
        return []
    layer = FilterResponseNormTlu2d(channels).to(device)
    return [Provider("timm", layer, list(layer.parameters()))]


def rows(case: Case, bandwidth: float, seconds: float, compiled: bool) -> Iterator[dict]:
    """One row per operation, provider and mode."""
    x = case.tensor().requires_grad_()
    dy = case.tensor()
    for op, group in providers(case, compiled):
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
            except (RuntimeError, NormdetError) as error:  # a peer that cannot: said, not hidden
                failed[provider.name] = str(error).strip().splitlines()[0][:80]
                continue
            forward[provider.name], both[provider.name] = run, step
        peaks = {
            name: {
                "forward": measure.peak_bytes(forward[name], case.device),
                "both": measure.peak_bytes(both[name], case.device),
            }
            for name in forward
        }
        times = {
            "forward": measure.interleaved(forward, case.device, seconds),
            "both": measure.interleaved(both, case.device, seconds),
        }
        reads = TRAFFIC["join" if "join" in op else "frozen" if "Frozen" in op else "norm"]
        ideal = {"forward": reads[0], "backward": reads[1], "both": sum(reads)}
        for name in forward:
            low, median, high = measure.quartiles(times["forward"][name])
            total = measure.quartiles(times["both"][name])
            # Backward cannot run without forward: it is what "both" takes beyond it.
            backward = [max(0.0, t - median) for t in total]
            for mode, (a, b, c) in (
                ("forward", (low, median, high)),
                ("backward", backward),
                ("both", total),
            ):
                share = ideal[mode] * x.nbytes / (b * bandwidth) if b > 0 else None
                yield _row(case, op, name) | {
                    "mode": mode,
                    "median_ms": round(b, 4),
                    "q25_ms": round(a, 4),
                    "q75_ms": round(c, 4),
                    "kept_bytes": kept[name],
                    "peak_bytes": peaks[name].get(mode),  # of backward: no more than of both
                    "share_of_copy_bandwidth": None if share is None else round(share, 3),
                }
        for name, reason in failed.items():
            yield _row(case, op, name) | {"mode": f"failed: {reason}"}


def _row(case: Case, op: str, provider: str) -> dict:
    return {
        "op": op,
        "shape": "x".join(map(str, case.shape)),
        "dtype": str(case.dtype).removeprefix("torch."),
        "layout": "channels_last" if case.channels_last else "contiguous",
        "provider": provider,
    }
