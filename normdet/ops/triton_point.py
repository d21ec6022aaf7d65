"""Triton kernels of the fixed affine and of the residual join, with their activation."""

import torch
import triton
import triton.language as tl

from normdet.ops.layout import memory_format
from normdet.ops.triton_tiles import Limits, load_or, split, tile_offsets, view, warps

_LIMITS = Limits()


@triton.jit
def _where(C, chunks, BC: tl.constexpr, BS: tl.constexpr):
    program = tl.program_id(0)
    chunk = program % chunks
    blocks = tl.cdiv(C, BC)
    channel = program // chunks % blocks * BC + tl.arange(0, BC)
    return program // chunks // blocks, channel, chunk * BS + tl.arange(0, BS), chunk


@triton.jit
def _forward(
    x, x2, y, scale, shift, tau, C, S, chunks,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, JOIN: tl.constexpr,
    ACT: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, _ = _where(C, chunks, BC, BS)
    valid = channel < C
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    z = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if JOIN:
        z += tl.load(x2 + at, mask=mask, other=0.0).to(tl.float32)
    else:
        a = tl.load(scale + channel, mask=valid, other=0.0).to(tl.float32)
        b = tl.load(shift + channel, mask=valid, other=0.0).to(tl.float32)
        z = z * a[:, None] + b[:, None]
    if ACT:
        t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
        z = tl.where(z <= t, t, z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    dy, y, dx, scale, tau, part, C, S, chunks,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, SCALE: tl.constexpr,
    TAU: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, chunk = _where(C, chunks, BC, BS)
    valid = channel < C
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    grad = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    out = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    kept = tl.where(out <= t, 0.0, grad)
    if TAU:
        sums = part + (n.to(tl.int64) * C + channel) * chunks + chunk
        tl.store(sums, tl.sum(grad - kept, 1), mask=valid)
    if SCALE:
        kept *= tl.load(scale + channel, mask=valid, other=0.0).to(tl.float32)[:, None]
    tl.store(dx + at, kept.to(dx.dtype.element_ty), mask=mask)


def affine_forward(x, scale, shift, tau, activation, limits=_LIMITS):
    return _run_forward(x, None, scale, shift, tau, activation, limits)


def add_forward(x, y, tau, activation, limits=_LIMITS):
    return _run_forward(x, y, None, None, tau, activation, limits)


def _as_stored(tau, x):
    """`tau` as the output holds it, so that backward finds the clamped elements again."""
    return None if tau is None else tau.to(x.dtype)


def _run_forward(x, x2, scale, shift, tau, activation, limits):
    v = view(x)
    y = torch.empty_like(v.x)
    if not x.numel():
        return y
    if x2 is not None:
        x2 = x2.contiguous(memory_format=memory_format(v.x))
    tau = _as_stored(tau, x)
    bc, bs = split(v, limits)
    chunks = triton.cdiv(v.s, bs)
    _forward[(v.n * triton.cdiv(v.c, bc) * chunks,)](
        v.x, x2, y, scale, shift, tau, v.c, v.s, chunks,
        BC=bc, BS=bs, LAST=v.last, JOIN=x2 is not None, ACT=activation is not None,
        TAU=tau is not None, num_warps=warps(bc * bs),
    )  # fmt: skip
    return y


def point_backward(dy, y, scale, tau, activation, limits=_LIMITS):
    v = view(y)
    dy = dy.contiguous(memory_format=memory_format(v.x))
    dx = torch.empty_like(v.x)
    dtau = torch.zeros(v.c, dtype=torch.float32, device=y.device)
    if not y.numel():
        return dx, dtau
    tau = _as_stored(tau, y)
    bc, bs = split(v, limits)
    chunks = triton.cdiv(v.s, bs)
    part = dtau.new_empty(v.n, v.c, chunks) if tau is not None else None
    _backward[(v.n * triton.cdiv(v.c, bc) * chunks,)](
        dy, v.x, dx, scale, tau, part, v.c, v.s, chunks,
        BC=bc, BS=bs, LAST=v.last, SCALE=scale is not None, TAU=tau is not None,
        num_warps=warps(bc * bs),
    )  # fmt: skip
    return dx, dtau if part is None else part.sum((0, 2))
