"""Triton kernels of the fixed affine and the residual join, alone or together, with activation."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normdet.ops.triton_join import make_join
from normdet.ops.triton_launch import current_device, elsewhere, make_launch, stream
from normdet.ops.triton_tiles import (
    DTYPES,
    Limits,
    aligned,
    alike,
    along_memory,
    check_dtype,
    clamp,
    dense,
    inside,
    kept,
    load_or,
    load_tile,
    origin,
    sizes,
    stride,
    tile,
    vector,
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
        tl.store(part_tau + (n * parts + part) * C + channel, tl.sum(lost, 1), mask=valid)


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

    @classmethod
    def of(cls, x, last, activation, aligned, joined, *others):
        """The site of a dense `x`."""
        check_dtype(x)
        n, c, *space = x.shape
        s = math.prod(space)
        return cls(n, c, s, last or s == 1, activation, aligned, x.dtype, joined, *others)

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
        """The launches of :func:`point_backward`: the kernel, and the sums for `tau` if any."""
        x = DTYPES[self.x]
        dsum = x if self.joined and self.scale is not None else None
        parameters = [d and DTYPES[d] for d in (self.scale, self.tau)]
        launch = self.launch(
            point_backward_kernel, (x, x, x, dsum), (*parameters, parameters[1] and "fp32"), ()
        )
        if self.tau is None:
            return launch, None
        return launch, make_join(("fp32", None, None, None), self.slabs, self.c)

    @property
    def slabs(self) -> int:
        """The sums for each channel of `tau`'s gradient."""
        return self.n * self.cut()[-1].parts


_forwards: dict[tuple, object] = {}
_backwards: dict[tuple, object] = {}


def point_forward(x, residual, scale, shift, tau, activation, limits=_LIMITS):
    device = x.get_device()
    if device != current_device():
        return elsewhere(point_forward, x, residual, scale, shift, tau, activation, limits)
    x, last = dense(x)
    if residual is not None:
        residual = alike(residual, x)
    key = (
        device, x.shape, last, x.dtype, activation, aligned(x, residual), residual is None,
        None if scale is None else scale.dtype, None if shift is None else shift.dtype,
        None if tau is None else tau.dtype, limits,
    )  # fmt: skip
    launch = _forwards.get(key)
    y = torch.empty_like(x)
    if launch is None:
        if not x.numel():
            return y
        _, _, _, _, activation, even, bare, *others = key
        launch = Site.of(x, last, activation, even, not bare, *others).forward()
        _forwards[key] = launch
    launch(stream(device), x, residual, y, scale, shift, tau)
    return y


def point_backward(dy, y, scale, joined, tau, limits=_LIMITS):
    device = y.get_device()
    if device != current_device():
        return elsewhere(_point_backward_at, y, dy, scale, joined, tau, limits)
    y, last = dense(y)
    dy = alike(dy, y)
    dx = torch.empty_like(y)
    dsum = torch.empty_like(y) if joined and scale is not None else None
    key = (
        device, y.shape, last, y.dtype, aligned(y, dy), joined,
        None if scale is None else scale.dtype, None if tau is None else tau.dtype, limits,
    )  # fmt: skip
    plan = _backwards.get(key)
    if plan is None:
        if not y.numel():
            return dx, dsum, None if tau is None else torch.zeros_like(tau, dtype=torch.float32)
        *_, even, joined, scaled, clamped, limits = key
        site = Site.of(y, last, None, even, joined, scaled, None, clamped, limits)
        plan = _backwards[key] = (*site.backward(), site.slabs)
    launch, join, slabs = plan
    now = stream(device)
    if join is None:
        launch(now, dy, y, dx, dsum, scale, tau, None)
        return dx, dsum, None
    dtau = torch.empty_like(tau, dtype=torch.float32)
    part = dtau.new_empty(slabs * y.shape[1])
    launch(now, dy, y, dx, dsum, scale, tau, part)
    join(now, part, dtau, None, None, None)
    return dx, dsum, dtau


def _point_backward_at(y, dy, *inputs):
    return point_backward(dy, y, *inputs)
