"""Triton kernels of FRN, GN and weight standardization with their activation.

There are two regimes, each for both layouts. "Whole": a program normalizes some channels of some
examples from start to end. "Split": longer rows are cut into parts; a first kernel writes partial
sums of every part, a second joins those of its channels and finishes its part. There are no
atomics, so the result for an input never varies from run to run.

The formulas and the names `a`, `s0`, `s1`, `st`, `p`, `q` are those of `eager.py`. A `residual` is
added before the activation; backward then finds what was clamped from the output `out`, and `dsum`
is the gradient of the sum, which is that of the residual.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from normdet.ops.layout import are_rows
from normdet.ops.triton_join import make_join
from normdet.ops.triton_launch import current_device, elsewhere, make_launch, stream
from normdet.ops.triton_tiles import (
    DTYPES,
    Limits,
    aligned,
    alike,
    along_memory,
    ceil,
    check_dtype,
    clamp,
    dense,
    inside,
    kept,
    load_or,
    load_tile,
    origin,
    power,
    sizes,
    store_if,
    stride,
    tile,
    vector,
    walk,
    warps,
    where_split,
)

_LIMITS = Limits()
_FILTER_TILE = (4, 512)  # of weights to standardize: rows of thousands of elements, few of them

# How the rows of a whole program's tile belong together.
ALONE, ONE_GROUP, GROUPS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _moments(x, at, step, valid, begin, end, S, offsets, BC: tl.constexpr, BS: tl.constexpr,
             CENTRE: tl.constexpr):  # fmt: skip
    """Mean and squared deviations of rows `(BC,)` over the pixels of a part; or 0 and squares.

    Every element of the tile has its own mean, so that nothing cancels (Welford) and threads
    exchange values only once, at the end.
    """
    mean = tl.zeros((BC, BS), tl.float32)
    m2 = tl.zeros((BC, BS), tl.float32)
    seen = 0.0
    for start in range(begin, end, BS):
        mask = inside(valid, start, S, BS)
        v = load_tile(x + (at + start * step), offsets, mask)
        if CENTRE:
            seen += 1.0
            away = tl.where(mask, v - mean, 0.0)
            mean += away * (1.0 / seen)
            m2 += away * (v - mean)
        else:
            m2 += v * v
    if CENTRE:
        left = end - begin - tl.arange(0, BS)
        count = tl.maximum((left + BS - 1) // BS, 0).to(tl.float32)[None, :]
        mu = tl.sum(mean * count, 1) / (end - begin)
        away = mean - mu[:, None]
        return mu, tl.sum(m2 + count * away * away, 1)
    return tl.zeros((BC,), tl.float32), tl.sum(m2, 1)


@triton.jit
def _apply(x, residual, y, at, step, valid, begin, end, S, offsets, mu, a, b, t,
           BS: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    for start in range(begin, end, BS):
        here = at + start * step
        mask = inside(valid, start, S, BS)
        z = (load_tile(x + here, offsets, mask) - mu[:, None]) * a[:, None] + b[:, None]
        if residual is not None:
            z += load_tile(residual + here, offsets, mask)
        z = clamp(z, t[:, None], ACT)
        tl.store(y + here + offsets, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _read(dy, x, out, here, offsets, mask, mu, a, b, t, ACT: tl.constexpr):
    """The gradient, the gradient where the activation let its input pass, the centred input."""
    grad = load_tile(dy + here, offsets, mask)
    v = load_tile(x + here, offsets, mask) - mu[:, None]
    if out is not None:
        stored = t.to(out.dtype.element_ty).to(tl.float32)[:, None]
        k = kept(grad, load_tile(out + here, offsets, mask), stored, ACT)
    else:
        k = kept(grad, v * a[:, None] + b[:, None], t[:, None], ACT)
    return grad, k, v


@triton.jit
def _sums(dy, x, out, dsum, at, step, valid, begin, end, S, offsets, mu, a, b, t,
          BC: tl.constexpr, BS: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    """`s0`, `s1` and `st` of rows `(BC,)` over the pixels of a part; `dsum` is written."""
    s0 = tl.zeros((BC, BS), tl.float32)
    s1 = tl.zeros((BC, BS), tl.float32)
    st = tl.zeros((BC, BS), tl.float32)
    for start in range(begin, end, BS):
        here = at + start * step
        mask = inside(valid, start, S, BS)
        grad, k, v = _read(dy, x, out, here, offsets, mask, mu, a, b, t, ACT)
        if dsum is not None:
            tl.store(dsum + here + offsets, k.to(dsum.dtype.element_ty), mask=mask)
        s0 += k
        s1 += k * v
        if ACT:
            st += grad - k
    return tl.sum(s0, 1), tl.sum(s1, 1), tl.sum(st, 1)


@triton.jit
def _grad(dy, x, out, dx, at, step, valid, begin, end, S, offsets, mu, a, b, t, p, q,
          BS: tl.constexpr, ACT: tl.constexpr):  # fmt: skip
    for start in range(begin, end, BS):
        here = at + start * step
        mask = inside(valid, start, S, BS)
        _, k, v = _read(dy, x, out, here, offsets, mask, mu, a, b, t, ACT)
        result = k * a[:, None] + v * p[:, None] + q[:, None]
        tl.store(dx + here + offsets, result.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _rstd(m2, count, eps, learned_eps, DEVIATION: tl.constexpr):
    if learned_eps is not None:
        eps = tl.load(learned_eps).to(tl.float32)
    else:
        eps = tl.cast(eps, tl.float32)
    if DEVIATION:
        return 1.0 / (tl.sqrt(m2 / (count - 1)) + eps)
    return 1.0 / tl.sqrt(m2 / count + eps)


@triton.jit
def _slopes(g0, g1, r, count, eps, mean, DEVIATION: tl.constexpr):
    """`p` and `q` of rows, from the sums of their groups."""
    if DEVIATION:
        deviation = 1.0 / r - tl.cast(eps, tl.float32)
        p = tl.where(deviation > 0, -g1 * r * r / ((count - 1) * deviation), 0.0)
    else:
        p = -g1 * r * r * r / count
    if mean is not None:
        return p, -g0 * r / count
    return p, tl.zeros_like(p)


@triton.jit
def _load_mean(mean, index, mask):
    if mean is not None:
        return tl.load(mean + index, mask=mask, other=0.0)
    return tl.zeros(index.shape, tl.float32)


@triton.jit
def _where_whole(C, width, step, VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr):
    """Slab of examples, first channel, the channels, and which of them there are, of a program."""
    if LAST:
        step = step * VEC
    blocks = tl.cdiv(C, step)
    first = tl.program_id(0) % blocks * step
    lane = tl.arange(0, BC)
    channel = first + lane
    return tl.program_id(0) // blocks, first, channel, (lane < step) & (channel < C)


@triton.jit
def _total(rows, channel, valid, width, TOGETHER: tl.constexpr):
    """Every row's sum `(BC,)` over the rows of its group."""
    if TOGETHER == ALONE:
        return rows
    rows = tl.where(valid, rows, 0.0)
    if TOGETHER == ONE_GROUP:
        return tl.zeros_like(rows) + tl.sum(rows, 0)
    group = tl.where(valid, channel // width, -1)
    return tl.sum(tl.where(group[:, None] == group[None, :], rows[None, :], 0.0), 1)


@triton.jit
def whole_forward(
    x, residual, y, weight, bias, tau, mean, rstd, learned_eps,
    N, outer, inner, width, step, per, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    TOGETHER: tl.constexpr, DEVIATION: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    slab, first, channel, valid = _where_whole(C, width, step, VEC, LAST, BC)
    offsets = tile(C, S, BC, BS, LAST)
    forward = stride(C, LAST)
    count = S * 1.0 * width
    for n in range(slab * per, tl.minimum(slab * per + per, N)):
        at = origin(n, first, C, S, LAST)
        mu, m2 = _moments(x, at, forward, valid, 0, S, S, offsets, BC, BS, mean is not None)
        stat = n * (C // width) + channel // width
        leader = valid & (channel % width == 0)
        if mean is not None:
            rows = mu
            mu = _total(mu, channel, valid, width, TOGETHER) / width
            m2 += S * (rows - mu) * (rows - mu)
            tl.store(mean + stat, mu, mask=leader)
        m2 = _total(m2, channel, valid, width, TOGETHER)
        r = _rstd(m2, count, eps, learned_eps, DEVIATION)
        tl.store(rstd + stat, r, mask=leader)
        # Read parameters again for each example; keeping them would cost registers.
        _apply(
            x, residual, y, at, forward, valid, 0, S, S, offsets, mu,
            r * load_or(weight, channel, valid, 1.0), load_or(bias, channel, valid, 0.0),
            load_or(tau, channel, valid, 0.0), BS, ACT,
        )  # fmt: skip


@triton.jit
def whole_backward(
    dy, x, out, dx, dsum, weight, bias, tau, mean, rstd, dweight, dbias, dtau, sums,
    N, outer, inner, width, step, per, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    TOGETHER: tl.constexpr, DEVIATION: tl.constexpr, ACT: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    slab, first, channel, valid = _where_whole(C, width, step, VEC, LAST, BC)
    offsets = tile(C, S, BC, BS, LAST)
    forward = stride(C, LAST)
    count = S * 1.0 * width
    dw = tl.zeros((BC,), tl.float32)
    db = tl.zeros((BC,), tl.float32)
    dt = tl.zeros((BC,), tl.float32)
    de = tl.zeros((BC,), tl.float32)
    for n in range(slab * per, tl.minimum(slab * per + per, N)):
        at = origin(n, first, C, S, LAST)
        stat = n * (C // width) + channel // width
        r = tl.load(rstd + stat, mask=valid, other=0.0)
        mu = _load_mean(mean, stat, valid)
        w = load_or(weight, channel, valid, 1.0)
        b = load_or(bias, channel, valid, 0.0)
        t = load_or(tau, channel, valid, 0.0)
        a = w * r
        s0, s1, st = _sums(
            dy, x, out, dsum, at, forward, valid, 0, S, S, offsets, mu, a, b, t, BC, BS, ACT
        )
        g0 = _total(w * s0, channel, valid, width, TOGETHER)
        g1 = _total(w * s1, channel, valid, width, TOGETHER)
        p, q = _slopes(g0, g1, r, count, eps, mean, DEVIATION)
        _grad(dy, x, out, dx, at, forward, valid, 0, S, S, offsets, mu, a, b, t, p, q, BS, ACT)
        dw += s1 * r
        db += s0
        dt += st
        if EPS:
            de += w * s1 * r * r * r
    if sums is not None:
        slabs = tl.cdiv(N, per)
        here = sums + slab * C + channel
        tl.store(here, dw, mask=valid)
        tl.store(here + slabs * C, db, mask=valid)
        tl.store(here + 2 * slabs * C, dt, mask=valid)
        if EPS:
            tl.store(here + 3 * slabs * C, de, mask=valid)
    store_if(dweight, channel, dw, valid)
    store_if(dbias, channel, db, valid)
    store_if(dtau, channel, dt, valid)


@triton.jit
def split_moments(
    x, part_mean, part_m2,
    outer, inner, blocks, parts, steps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, part, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    begin = part * (steps * BS)
    mu, m2 = _moments(
        x, origin(n, block * BC, C, S, LAST), stride(C, LAST), valid,
        begin, tl.minimum(begin + steps * BS, S), S, tile(C, S, BC, BS, LAST), BC, BS,
        part_mean is not None,
    )  # fmt: skip
    here = (n * C + channel) * parts + part
    if part_mean is not None:
        tl.store(part_mean + here, mu, mask=valid)
    tl.store(part_m2 + here, m2, mask=valid)


@triton.jit
def _join_moments(
    part_mean, part_m2, stat, valid, count, entries, parts, length, row, BC: tl.constexpr
):
    """Mean and squared deviations of groups `(BC,)` from the `entries` of each.

    An entry is for a part of a row of `row` elements: `length` of them, fewer in the last part.
    """
    BJ: tl.constexpr = 1024 // BC
    total = tl.zeros((BC, BJ), tl.float32)
    if part_mean is not None:
        for j in range(0, entries, BJ):
            entry = j + tl.arange(0, BJ)
            mask = valid[:, None] & (entry < entries)[None, :]
            share = tl.minimum(row - entry % parts * length, length).to(tl.float32)[None, :]
            here = part_mean + stat[:, None] * entries + entry[None, :]
            total += share * tl.load(here, mask=mask, other=0.0)
    mu = tl.sum(total, 1) / count
    total = tl.zeros((BC, BJ), tl.float32)
    for j in range(0, entries, BJ):
        entry = j + tl.arange(0, BJ)
        mask = valid[:, None] & (entry < entries)[None, :]
        here = stat[:, None] * entries + entry[None, :]
        total += tl.load(part_m2 + here, mask=mask, other=0.0)
        if part_mean is not None:
            share = tl.minimum(row - entry % parts * length, length).to(tl.float32)[None, :]
            away = tl.load(part_mean + here, mask=mask, other=0.0) - mu[:, None]
            total += tl.where(mask, share * away * away, 0.0)
    return mu, tl.sum(total, 1)


@triton.jit
def split_apply(
    x, residual, y, weight, bias, tau, mean, rstd, learned_eps, part_mean, part_m2,
    outer, inner, width, blocks, parts, steps, entries, pieces, piece, row, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, part, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    stat = n * (C // width) + channel // width
    count = S * 1.0 * width
    mu, m2 = _join_moments(part_mean, part_m2, stat, valid, count, entries, pieces, piece, row, BC)
    r = _rstd(m2, count, eps, learned_eps, False)
    if part == 0:
        leader = valid & (channel % width == 0)
        if mean is not None:
            tl.store(mean + stat, mu, mask=leader)
        tl.store(rstd + stat, r, mask=leader)
    begin = part * (steps * BS)
    _apply(
        x, residual, y, origin(n, block * BC, C, S, LAST), stride(C, LAST), valid,
        begin, tl.minimum(begin + steps * BS, S), S, tile(C, S, BC, BS, LAST),
        mu, r * load_or(weight, channel, valid, 1.0), load_or(bias, channel, valid, 0.0),
        load_or(tau, channel, valid, 0.0), BS, ACT,
    )  # fmt: skip


@triton.jit
def split_sums(
    dy, x, out, dsum, weight, bias, tau, mean, rstd, part,
    N, outer, inner, width, blocks, parts, steps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, index, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    stat = n * (C // width) + channel // width
    a = tl.load(rstd + stat, mask=valid, other=0.0) * load_or(weight, channel, valid, 1.0)
    begin = index * (steps * BS)
    s0, s1, st = _sums(
        dy, x, out, dsum, origin(n, block * BC, C, S, LAST), stride(C, LAST), valid,
        begin, tl.minimum(begin + steps * BS, S), S, tile(C, S, BC, BS, LAST),
        _load_mean(mean, stat, valid), a, load_or(bias, channel, valid, 0.0),
        load_or(tau, channel, valid, 0.0), BC, BS, ACT,
    )  # fmt: skip
    here = part + (n * C + channel) * parts + index
    every = N * C * parts
    tl.store(here, s0, mask=valid)
    tl.store(here + every, s1, mask=valid)
    tl.store(here + 2 * every, st, mask=valid)


@triton.jit
def _join_channels(
    part, dweight, dbias, dtau, deps, weight, rstd, channel, valid, N, C, width, parts,
    BC: tl.constexpr,
):  # fmt: skip
    """The sums of channels over all examples and parts: gradients of the parameters."""
    BJ: tl.constexpr = 1024 // BC
    every = N * C * parts
    dw = tl.zeros((BC, BJ), tl.float32)
    db = tl.zeros((BC, BJ), tl.float32)
    dt = tl.zeros((BC, BJ), tl.float32)
    de = tl.zeros((BC, BJ), tl.float32)
    for j in range(0, N * parts, BJ):
        entry = (j + tl.arange(0, BJ))[None, :]
        mask = valid[:, None] & (entry < N * parts)
        n = entry // parts
        here = part + (n * C + channel[:, None]) * parts + entry % parts
        r = tl.load(rstd + n * (C // width) + channel[:, None] // width, mask=mask, other=0.0)
        s1 = tl.load(here + every, mask=mask, other=0.0) * r
        dw += s1
        db += tl.load(here, mask=mask, other=0.0)
        dt += tl.load(here + 2 * every, mask=mask, other=0.0)
        if deps is not None:
            de += s1 * r * r
    store_if(dweight, channel, tl.sum(dw, 1), valid)
    store_if(dbias, channel, tl.sum(db, 1), valid)
    store_if(dtau, channel, tl.sum(dt, 1), valid)
    if deps is not None:
        tl.store(deps + channel, tl.sum(de, 1) * load_or(weight, channel, valid, 1.0), mask=valid)


@triton.jit
def split_grad(
    dy, x, dx, weight, bias, tau, mean, rstd, part, dweight, dbias, dtau, deps,
    N, outer, inner, width, blocks, parts, steps, eps,
    VEC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    ACT: tl.constexpr, TRAINED: tl.constexpr,
):  # fmt: skip
    """Finish the gradient of `x`; the last programs, one per block of channels, the parameters'."""
    C, S = sizes(outer, inner, VEC, LAST)
    n, block, index, channel = where_split(C, blocks, parts, BC)
    valid = channel < C
    if n == N:
        if TRAINED:
            channel = (tl.program_id(0) - N * blocks * parts) * BC + tl.arange(0, BC)
            _join_channels(
                part, dweight, dbias, dtau, deps, weight, rstd, channel, channel < C, N, C, width,
                parts, BC,
            )  # fmt: skip
    else:
        stat = n * (C // width) + channel // width
        r = tl.load(rstd + stat, mask=valid, other=0.0)
        entries = width * parts
        BJ: tl.constexpr = 1024 // BC
        g0 = tl.zeros((BC, BJ), tl.float32)
        g1 = tl.zeros((BC, BJ), tl.float32)
        for j in range(0, entries, BJ):
            entry = (j + tl.arange(0, BJ))[None, :]
            mask = valid[:, None] & (entry < entries)
            here = part + stat[:, None] * entries + entry
            member = channel[:, None] // width * width + entry // parts
            w = load_or(weight, member, mask, 1.0)
            g0 += w * tl.load(here, mask=mask, other=0.0)
            g1 += w * tl.load(here + N * C * parts, mask=mask, other=0.0)
        p, q = _slopes(tl.sum(g0, 1), tl.sum(g1, 1), r, S * 1.0 * width, eps, mean, False)
        begin = index * (steps * BS)
        _grad(
            dy, x, None, dx, origin(n, block * BC, C, S, LAST), stride(C, LAST), valid,
            begin, tl.minimum(begin + steps * BS, S), S, tile(C, S, BC, BS, LAST),
            _load_mean(mean, stat, valid), r * load_or(weight, channel, valid, 1.0),
            load_or(bias, channel, valid, 0.0), load_or(tau, channel, valid, 0.0), p, q, BS, ACT,
        )  # fmt: skip


class Site(NamedTuple):
    """The key of a norm's plan: everything that decides how it is computed.

    Dtypes are torch's, None for arguments that are not given.
    """

    n: int
    c: int
    s: int
    last: bool
    kind: str
    groups: int
    eps: float
    activation: str | None
    aligned: bool
    x: torch.dtype
    y: torch.dtype
    residual: torch.dtype | None
    weight: torch.dtype | None
    bias: torch.dtype | None
    tau: torch.dtype | None
    learned_eps: torch.dtype | None
    limits: Limits

    @classmethod
    def of(
        cls, x, last, out, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation,
        aligned, limits,
    ):  # fmt: skip
        """The site of a dense `x`; the others by their dtypes, `out` that of the output.

        Raises:
            NormdetError: the kernels do not compute the dtype of `x`.
        """
        check_dtype(x)
        n, c, *space = x.shape
        s = math.prod(space)
        if are_rows(groups, residual, weight, bias, tau, learned_eps) and c * s < 1 << 31:
            n, c, s, groups, last = 1, n, c * s, n, False
        return cls(
            n, c, s, last or s == 1, kind, groups, eps, activation, aligned, x.dtype, out,
            residual, weight, bias, tau, learned_eps, limits,
        )  # fmt: skip

    @property
    def width(self) -> int:
        return self.c // self.groups

    @property
    def centre(self) -> str | None:
        """The dtype of the means, if there are any."""
        return None if self.kind == "rms" else "fp32"

    def vec(self, length: int) -> int:
        """The number of elements along memory that may be read at once."""
        narrowest = min(self.x.itemsize, self.y.itemsize)
        return vector(length, narrowest, self.limits) if self.aligned else 1

    def wide(self, vec: int, tensors: int) -> int:
        """How many of the first `tensors` are declared aligned; 0 if it does not matter."""
        return tensors if vec > 1 else 0


def _name(dtype: torch.dtype | None) -> str | None:
    return None if dtype is None else DTYPES[dtype]


class _Whole(NamedTuple):
    """A tile that holds whole groups, and how many examples a program takes."""

    rows: int
    columns: int
    step: int  # channels per program
    together: int
    per: int
    slabs: int
    grid: int
    warps: int


def _whole(site: Site, vec: int) -> _Whole | None:
    """The whole regime, or None if rows are too long or groups too large for it."""
    limits, width = site.limits, site.width
    weights = site.kind == "deviation"
    if site.s > limits.whole and not weights:
        return None
    rows, columns = limits.rows, limits.columns
    if site.last:
        rows, columns = columns, rows
    if site.s == 1:
        rows, columns = rows // 2 if width > 1 else 8 * rows, 1
    elif weights and not site.last:
        rows, columns = _FILTER_TILE
    narrow = vec == 1 and width > 1 and columns > 1 and not (weights or site.last)
    if narrow:
        rows //= 2  # elements read one by one need an address each, and so more registers
    rows = max(rows, power(width))
    most = 16 * limits.rows * (1 if columns > 1 else 16)
    if rows > most:
        return None
    columns = max(1, min(columns, 2 * limits.rows * limits.columns // rows))
    unit = math.lcm(width, vec) if site.last else width
    step = rows // unit * unit
    if not step:
        return None
    together = 0 if width == 1 else 1 if step == width else 2
    table = together == 2 and site.last and columns > 1  # of groups
    if table and vec == 8:
        columns *= 2
    threads = max(warps(rows * columns, vec), 8 if table or narrow else 1)
    blocks = ceil(site.c, step)
    per = min(site.n, max(4, site.n * blocks // limits.programs)) or 1
    slabs = ceil(site.n, per)
    return _Whole(rows, columns, step, together, per, slabs, slabs * blocks, threads)


def _whole_numbers(site: Site, vec: int, whole: _Whole) -> tuple:
    outer, inner = along_memory(site.c, site.s, site.last, vec)
    step = whole.step // vec if site.last else whole.step
    return site.n, outer, inner, site.width, step, whole.per, site.eps


def _whole_constants(site: Site, vec: int, whole: _Whole) -> tuple:
    return (
        vec, site.last, whole.rows, whole.columns, whole.together, site.kind == "deviation",
        site.activation is not None,
    )  # fmt: skip


class Forward:
    """The launches of a norm's forward, with their scratch memory."""

    def __init__(self, site: Site):
        vec = site.vec(site.c if site.last else site.s)
        whole = _whole(site, vec)
        names = [_name(d) for d in (site.x, site.residual, site.y)]
        parameters = [_name(d) for d in (site.weight, site.bias, site.tau)]
        statistics = [site.centre, "fp32", _name(site.learned_eps)]
        self.groups = site.n * site.groups
        self.dtype = None if site.y is site.x else site.y
        self.centre = site.centre is not None
        self.scratch = 0  # the number of partial sums of each kind
        if whole is not None:
            self.launches = (
                make_launch(
                    whole_forward, (*names, *parameters, *statistics),
                    _whole_numbers(site, vec, whole), _whole_constants(site, vec, whole),
                    grid=whole.grid, warps=whole.warps,
                    wide=site.wide(vec, 3),
                ),
            )  # fmt: skip
            return
        # Contiguous groups are runs of memory that can be read without regard to channels.
        flat = not site.last and site.width > 1
        c, s = (site.groups, site.width * site.s) if flat else (site.c, site.s)
        run = site.vec(c if site.last else s)
        m = walk(site.n, c, s, site.last, site.limits, flat)
        self.scratch = site.n * c * m.parts
        moments = make_launch(
            split_moments, (names[0], site.centre, "fp32"),
            (*along_memory(c, s, site.last, run), m.blocks, m.parts, m.steps),
            (run, site.last, m.rows, m.columns),
            grid=m.grid, warps=warps(m.rows * m.columns, run), wide=site.wide(run, 1),
        )  # fmt: skip
        w = walk(site.n, site.c, site.s, site.last, site.limits)
        entries = m.parts if flat else site.width * m.parts
        apply = make_launch(
            split_apply, (*names, *parameters, *statistics, site.centre, "fp32"),
            (
                *along_memory(site.c, site.s, site.last, vec), site.width, w.blocks, w.parts,
                w.steps, entries, m.parts, m.length, s, site.eps,
            ),
            (vec, site.last, w.rows, w.columns, site.activation is not None),
            grid=w.grid, warps=warps(w.rows * w.columns, vec), wide=site.wide(vec, 3),
        )  # fmt: skip
        self.launches = (moments, apply)

    def __call__(self, x, residual, weight, bias, tau, learned_eps):
        """`y`, mean (None for "rms") and rstd, both `(N, groups)`."""
        device = x.get_device()
        y = torch.empty_like(x) if self.dtype is None else torch.empty_like(x, dtype=self.dtype)
        n = x.shape[0]
        stats, steps = (n, self.groups // n), (self.groups // n, 1)
        rstd = torch.empty_strided(stats, steps, dtype=torch.float32, device=x.device)
        mean = torch.empty_like(rstd) if self.centre else None
        now = stream(device)
        given = (x, residual, y, weight, bias, tau, mean, rstd, learned_eps)
        if self.scratch:
            m2 = rstd.new_empty(self.scratch)
            part = torch.empty_like(m2) if self.centre else None
            self.launches[0](now, x, part, m2)
            self.launches[1](now, *given, part, m2)
        else:
            self.launches[0](now, *given)
        return y, mean, rstd


class Backward:
    """The launches of a norm's backward, with their scratch memory."""

    def __init__(self, site: Site):
        vec = site.vec(site.c if site.last else site.s)
        whole = _whole(site, vec)
        x, y = _name(site.x), _name(site.y)
        joined = y if site.residual else None
        parameters = tuple(_name(d) for d in (site.weight, site.bias, site.tau))
        statistics = (site.centre, "fp32")
        self.eps = site.learned_eps is not None
        gradients = tuple(p and "fp32" for p in parameters)
        deps = "fp32" if self.eps else None
        self.trained = self.eps or any(parameters)
        self.joined = joined is not None
        self.split = whole is None
        act = site.activation is not None
        if whole is not None:
            slabs = whole.slabs
            apart = self.trained and (slabs > 1 or self.eps)  # sums that another kernel joins
            kinds = 4 if self.eps else 3
            self.scratch = kinds * slabs * site.c if apart else 0
            outputs = (None, None, None, "fp32") if apart else (*gradients, None)
            first = make_launch(
                whole_backward, (y, x, joined, x, joined, *parameters, *statistics, *outputs),
                _whole_numbers(site, vec, whole), (*_whole_constants(site, vec, whole), self.eps),
                grid=whole.grid, warps=whole.warps, wide=site.wide(vec, 5),
            )  # fmt: skip
            join = (make_join((*gradients, deps), slabs, site.c),) if apart else ()
            self.launches = (first, *join)
            return
        w = walk(site.n, site.c, site.s, site.last, site.limits)
        self.scratch = 3 * site.n * site.c * w.parts
        common = (
            site.n, *along_memory(site.c, site.s, site.last, vec), site.width, w.blocks, w.parts,
            w.steps,
        )  # fmt: skip
        constants = (vec, site.last, w.rows, w.columns)
        self.launches = (
            make_launch(
                split_sums, (y, x, joined, joined, *parameters, *statistics, "fp32"), common,
                (*constants, act), grid=w.grid, warps=warps(w.rows * w.columns, vec),
                wide=site.wide(vec, 4),
            ),
            # The first kernel has applied the activation's derivative already.
            make_launch(
                split_grad, (y, x, x, *parameters, *statistics, "fp32", *gradients, deps),
                (*common, site.eps), (*constants, act and not joined, self.trained),
                grid=w.grid + (w.blocks if self.trained else 0),
                warps=warps(w.rows * w.columns, vec), wide=site.wide(vec, 3),
            ),
        )  # fmt: skip

    def __call__(self, dy, x, out, mean, rstd, weight, bias, tau):
        """Gradients of `x`, of the residual, of the parameters, of eps: None if not given."""
        now = stream(x.get_device())
        dx = torch.empty_like(x)
        dsum = torch.empty_like(dy) if self.joined else None
        part = rstd.new_empty(self.scratch) if self.scratch else None
        given = (weight, bias, tau, mean, rstd)
        gradients = None
        if self.trained:
            gradients = (
                None if weight is None else torch.empty_like(weight, dtype=torch.float32),
                None if bias is None else torch.empty_like(bias, dtype=torch.float32),
                None if tau is None else torch.empty_like(tau, dtype=torch.float32),
            )  # fmt: skip
        outputs = gradients or (None, None, None)
        deps = rstd.new_empty(x.shape[1]) if self.eps else None
        if self.split:
            self.launches[0](now, dy, x, out, dsum, *given, part)
            dy = dsum if self.joined else dy
            self.launches[1](now, dy, x, dx, *given, part, *outputs, deps)
        elif part is None:
            self.launches[0](now, dy, x, out, dx, dsum, *given, *outputs, None)
        else:
            self.launches[0](now, dy, x, out, dx, dsum, *given, None, None, None, part)
            self.launches[1](now, part, *outputs, deps)
        return dx, dsum, gradients, (deps.sum() * -0.5).reshape(1) if self.eps else None


# Plans by all that a call depends on. Host time is scarce, so the calls below have few steps.
_forwards: dict[tuple, Forward] = {}
_backwards: dict[tuple, Backward] = {}


def norm_forward(
    x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype=None,
    limits=_LIMITS,
):  # fmt: skip
    device = x.get_device()
    if device != current_device():
        return elsewhere(
            norm_forward, x, residual, weight, bias, tau, learned_eps, kind, groups, eps,
            activation, dtype, limits,
        )  # fmt: skip
    x, last = dense(x)
    if residual is not None:
        residual = alike(residual, x)
    dtypes = (
        None if residual is None else residual.dtype, None if weight is None else weight.dtype,
        None if bias is None else bias.dtype, None if tau is None else tau.dtype,
        None if learned_eps is None else learned_eps.dtype,
    )  # fmt: skip
    own = (kind, groups, eps, activation, aligned(x, residual), limits)
    key = (device, x.shape, last, x.dtype, dtype, dtypes, own)
    plan = _forwards.get(key)
    if plan is None:
        if not x.numel():
            return _nothing(x, kind, groups, dtype)
        plan = Forward(Site.of(x, last, dtype or x.dtype, *dtypes, *own))
        _forwards[key] = plan
    return plan(x, residual, weight, bias, tau, learned_eps)


def norm_backward(
    dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient,
    limits=_LIMITS,
):  # fmt: skip
    """As in `eager.py`, but with the gradients of weight, bias and tau in a tuple."""
    device = x.get_device()
    if device != current_device():
        return elsewhere(
            _norm_backward_at, x, dy, out, mean, rstd, weight, bias, tau, kind, groups, eps,
            activation, eps_gradient, limits,
        )  # fmt: skip
    x, last = dense(x)
    dy = alike(dy, x)
    if out is not None:
        out = alike(out, x)
    dtypes = (
        None if out is None else out.dtype, None if weight is None else weight.dtype,
        None if bias is None else bias.dtype, None if tau is None else tau.dtype,
        torch.float32 if eps_gradient else None,
    )  # fmt: skip
    own = (kind, groups, eps, activation, aligned(x, dy) and (out is None or aligned(out)), limits)
    key = (device, x.shape, last, x.dtype, dy.dtype, dtypes, own)
    plan = _backwards.get(key)
    if plan is None:
        if not x.numel():
            return _no_gradients(dy, x, out, rstd, eps_gradient)
        plan = Backward(Site.of(x, last, dy.dtype, *dtypes, *own))
        _backwards[key] = plan
    return plan(dy, x, out, mean, rstd, weight, bias, tau)


def _norm_backward_at(x, dy, *inputs):
    return norm_backward(dy, x, *inputs)


def _nothing(x, kind, groups, dtype):
    """The outputs of forward for an input without elements."""
    rstd = torch.empty(x.shape[0], groups, dtype=torch.float32, device=x.device)
    return (
        torch.empty_like(x, dtype=dtype), None if kind == "rms" else torch.empty_like(rstd), rstd
    )  # fmt: skip


def _no_gradients(dy, x, out, rstd, eps_gradient):
    """The outputs of backward for an input without elements."""
    zeros = rstd.new_zeros(4, x.shape[1])
    dsum = None if out is None else torch.empty_like(dy)
    return torch.empty_like(x), dsum, zeros[:3], zeros[3, :1] if eps_gradient else None
