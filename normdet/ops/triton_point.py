"""Triton kernels of the fixed affine and the residual join, alone or together, with activation."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normdet.ops.triton_launch import make_launch, on_device, stream
from normdet.ops.triton_tiles import (
    DTYPES,
    Limits,
    aligned,
    alike,
    along_memory,
    clamp,
    inside,
    kept,
    load_or,
    load_tile,
    origin,
    sizes,
    stride,
    tile,
    vector,
    view,
    walk,
    warps,
    where_split,
)

_LIMITS = Limits()


@triton.jit
def point_forward_kernel(
    x, residual, y, scale, shift, tau,
    outer, inner, blocks, parts, steps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, part, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    offsets = tile(C, S, BC, BS, LAST)
    at = origin(n, block * BC, C, S, LAST)
    step = stride(C, LAST)
    a = load_or(scale, channel, valid, 1.0)[:, None]
    b = load_or(shift, channel, valid, 0.0)[:, None]
    t = load_or(tau, channel, valid, 0.0)[:, None]
    begin = part * (steps * BS)
    for start in range(begin, tl.minimum(begin + steps * BS, S), BS):
        here = at + start * step
        mask = inside(valid, start, S, BS)
        z = load_tile(x + here, offsets, mask)
        if scale is not None:
            z = z * a + b
        if residual is not None:
            z += load_tile(residual + here, offsets, mask)
        tl.store(y + here + offsets, clamp(z, t, ACT).to(y.dtype.element_ty), mask=mask)


@triton.jit
def point_backward_kernel(
    dy, y, dx, dsum, scale, tau, part_tau,
    outer, inner, blocks, parts, steps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, part, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    offsets = tile(C, S, BC, BS, LAST)
    at = origin(n, block * BC, C, S, LAST)
    step = stride(C, LAST)
    a = load_or(scale, channel, valid, 1.0)[:, None]
    # Round as the output does, to find the clamped elements again.
    t = load_or(tau, channel, valid, 0.0).to(y.dtype.element_ty).to(tl.float32)[:, None]
    lost = tl.zeros((BC, BS), tl.float32)
    begin = part * (steps * BS)
    for start in range(begin, tl.minimum(begin + steps * BS, S), BS):
        here = at + start * step
        mask = inside(valid, start, S, BS)
        grad = load_tile(dy + here, offsets, mask)
        k = kept(grad, load_tile(y + here, offsets, mask), t, True)
        if part_tau is not None:
            lost += grad - k
        if dsum is not None:
            tl.store(dsum + here + offsets, k.to(dsum.dtype.element_ty), mask=mask)
        tl.store(dx + here + offsets, (k * a).to(dx.dtype.element_ty), mask=mask)
    if part_tau is not None:
        tl.store(part_tau + (n * C + channel) * parts + part, tl.sum(lost, 1), mask=valid)


class Site(NamedTuple):
    """The key of a pointwise form's plan: everything that decides how it is computed."""

    n: int
    c: int
    s: int
    last: bool
    activation: str | None
    aligned: bool
    x: torch.dtype
    joined: bool
    scale: torch.dtype | None
    shift: torch.dtype | None
    tau: torch.dtype | None
    limits: Limits

    def cut(self):
        """Sizes, vector and walk. If nothing varies by channel, an example is one long row."""
        n, c, s, last = self.n, self.c, self.s, self.last
        flat = self.scale is None and self.tau is None and c * s < 1 << 31
        if flat:
            c, s, last = 1, c * s, False
        vec = vector(c if last else s, self.x.itemsize, self.limits) if self.aligned else 1
        return (*along_memory(c, s, last, vec), vec, last, walk(n, c, s, last, self.limits, flat))

    def launch(self, function, activations: tuple, parameters: tuple, flags: tuple):
        outer, inner, vec, last, w = self.cut()
        return make_launch(
            function, (*activations, *parameters), (outer, inner, w.blocks, w.parts, w.steps),
            (vec, last, w.rows, w.columns, *flags), grid=w.grid,
            warps=warps(w.rows * w.columns, vec), wide=len(activations) if vec > 1 else 0,
        )  # fmt: skip

    def forward(self):
        """The launch of :func:`point_forward`."""
        x = DTYPES[self.x]
        parameters = (self.scale, self.shift, self.tau)
        return self.launch(
            point_forward_kernel, (x, x if self.joined else None, x),
            tuple(d and DTYPES[d] for d in parameters), (self.activation is not None,),
        )  # fmt: skip

    def backward(self):
        """The launch of :func:`point_backward`, and the parts in which it sums for `tau`."""
        x = DTYPES[self.x]
        dsum = x if self.joined and self.scale is not None else None
        parameters = [d and DTYPES[d] for d in (self.scale, self.tau)]
        launch = self.launch(
            point_backward_kernel, (x, x, x, dsum), (*parameters, parameters[1] and "fp32"), ()
        )
        return launch, self.cut()[-1].parts


_forwards: dict[tuple, object] = {}
_backwards: dict[tuple, object] = {}


def _dtype(x):
    return None if x is None else x.dtype


@on_device
def point_forward(x, residual, scale, shift, tau, activation, limits=_LIMITS):
    x, last, n, c, s = view(x)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    if residual is not None:
        residual = alike(residual, x)
    site = (
        n, c, s, last, activation, aligned(x, residual), x.dtype, residual is not None,
        _dtype(scale), _dtype(shift), _dtype(tau), limits,
    )  # fmt: skip
    launch = _forwards.get((x.device, site))
    if launch is None:
        launch = _forwards[x.device, site] = Site(*site).forward()
    launch(stream(), x, residual, y, scale, shift, tau)
    return y


@on_device
def point_backward(dy, y, scale, joined, tau, limits=_LIMITS):
    y, last, n, c, s = view(y)
    dy = alike(dy, y)
    dx = torch.empty_like(y)
    dsum = torch.empty_like(y) if joined and scale is not None else None
    if not y.numel():
        return dx, dsum, None if tau is None else torch.zeros_like(tau, dtype=torch.float32)
    site = (
        n, c, s, last, None, aligned(dy, y), y.dtype, joined, _dtype(scale), None, _dtype(tau),
        limits,
    )  # fmt: skip
    plan = _backwards.get((y.device, site))
    if plan is None:
        plan = _backwards[y.device, site] = Site(*site).backward()
    launch, parts = plan
    part = None
    if tau is not None:
        part = torch.empty(n, c, parts, dtype=torch.float32, device=y.device)
    launch(stream(), dy, y, dx, dsum, scale, tau, part)
    return dx, dsum, None if part is None else part.sum((0, 2))
