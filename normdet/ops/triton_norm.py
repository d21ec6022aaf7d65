"""Triton kernels of FRN, GN and weight standardization with their activation.

Two regimes, either layout. "Whole": a program holds whole rows (FRN: as many as fit; GN: the rows
of one group) and does everything in one reading. "Split": rows too long for that are cut into
tiles; tiles write partial sums, one program per group joins them in order, tiles finish. There are
no atomics: the result for an input never varies from run to run.

The formulas and the names `a`, `s0`, `s1`, `st`, `p`, `q` are those of `eager.py`.
"""

import torch
import triton
import triton.language as tl

from normdet.ops.layout import memory_format
from normdet.ops.triton_tiles import Limits, load_or, split, tile_offsets, view, warps

_LIMITS = Limits()


@triton.jit
def _rstd(variance, eps, eps_pointer, DEVIATION: tl.constexpr, LEARNED: tl.constexpr):
    if LEARNED:
        eps = tl.load(eps_pointer).to(tl.float32)
    else:
        eps = tl.cast(eps, tl.float32)
    if DEVIATION:
        return 1.0 / (tl.sqrt(variance) + eps)
    return 1.0 / tl.sqrt(variance + eps)


@triton.jit
def _slope(g1, r, count, eps, DEVIATION: tl.constexpr):
    if DEVIATION:
        deviation = 1.0 / r - tl.cast(eps, tl.float32)
        return tl.where(deviation > 0, -g1 * r * r / ((count - 1) * deviation), 0.0)
    return -g1 * r * r * r / count


@triton.jit
def _clamp(z, t, ACT: tl.constexpr):
    if ACT:
        return tl.where(z <= t, t, z)  # as written, NaN passes
    return z


@triton.jit
def _kept(dy, z, t, ACT: tl.constexpr):
    if ACT:
        return tl.where(z <= t, 0.0, dy)
    return dy


@triton.jit
def _total(v, GROUPED: tl.constexpr):
    """Sum over a row `(BC, 1)`, or over all rows of the tile where they are one group."""
    rows = tl.sum(v, 1)
    if GROUPED:
        return tl.zeros_like(rows)[:, None] + tl.sum(rows, 0)
    return rows[:, None]


@triton.jit
def _where_whole(C, groups, BC: tl.constexpr, GROUPED: tl.constexpr):
    """Example, channels, validity and statistics index of the rows of a program."""
    program = tl.program_id(0)
    lane = tl.arange(0, BC)
    if GROUPED:
        width = C // groups
        n, group = program // groups, program % groups
        return n, group * width + lane, lane < width, program + lane * 0
    blocks = tl.cdiv(C, BC)
    n = program // blocks
    channel = program % blocks * BC + lane
    return n, channel, channel < C, n * C + channel


@triton.jit
def _whole_forward(
    x, y, weight, bias, tau, mean, rstd, eps_pointer, C, S, groups, eps,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, GROUPED: tl.constexpr,
    CENTRE: tl.constexpr, DEVIATION: tl.constexpr, LEARNED: tl.constexpr, ACT: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, valid, stat = _where_whole(C, groups, BC, GROUPED)
    pixel = tl.arange(0, BS)
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    count = S * 1.0
    if GROUPED:
        count = count * (C // groups)
    first = tl.arange(0, BC) == 0
    store = valid & (first | (not GROUPED))
    if CENTRE:
        mu = _total(v, GROUPED) / count
        v = tl.where(mask, v - mu, 0.0)
        tl.store(mean + stat[:, None], mu, mask=store[:, None])
    divisor = count
    if DEVIATION:
        divisor = count - 1
    r = _rstd(_total(v * v, GROUPED) / divisor, eps, eps_pointer, DEVIATION, LEARNED)
    tl.store(rstd + stat[:, None], r, mask=store[:, None])
    a = r * load_or(weight, channel, valid, 1.0, WEIGHT)[:, None]
    b = load_or(bias, channel, valid, 0.0, BIAS)[:, None]
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    tl.store(y + at, _clamp(v * a + b, t, ACT).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _whole_backward(
    dy, x, dx, weight, bias, tau, mean, rstd, sums, rows, C, S, groups, eps,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, GROUPED: tl.constexpr,
    CENTRE: tl.constexpr, DEVIATION: tl.constexpr, ACT: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, valid, stat = _where_whole(C, groups, BC, GROUPED)
    pixel = tl.arange(0, BS)
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    r = tl.load(rstd + stat, mask=valid, other=0.0)[:, None]
    if CENTRE:
        mu = tl.load(mean + stat, mask=valid, other=0.0)[:, None]
        v = tl.where(mask, v - mu, 0.0)
    w = load_or(weight, channel, valid, 1.0, WEIGHT)[:, None]
    b = load_or(bias, channel, valid, 0.0, BIAS)[:, None]
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    kept = _kept(grad, v * (w * r) + b, t, ACT)
    row = n.to(tl.int64) * C + channel
    tl.store(sums + row, tl.sum(kept * v * r, 1), mask=valid)
    tl.store(sums + rows + row, tl.sum(kept, 1), mask=valid)
    tl.store(sums + 2 * rows + row, tl.sum(grad - kept, 1), mask=valid)
    count = S * 1.0
    if GROUPED:
        count = count * (C // groups)
    result = kept * (w * r) + v * _slope(_total(kept * v * w, GROUPED), r, count, eps, DEVIATION)
    if CENTRE:
        result -= _total(kept * w, GROUPED) * r / count
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _where_split(C, chunks, BC: tl.constexpr, BS: tl.constexpr):
    """Example, channels, pixels and chunk of a program."""
    program = tl.program_id(0)
    chunk = program % chunks
    blocks = tl.cdiv(C, BC)
    block = program // chunks % blocks
    n = program // chunks // blocks
    return n, block * BC + tl.arange(0, BC), chunk * BS + tl.arange(0, BS), chunk


@triton.jit
def _split_moments(
    x, part_mean, part_m2, C, S, chunks,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, chunk = _where_split(C, chunks, BC, BS)
    mask = (channel < C)[:, None] & (pixel < S)[None, :]
    v = tl.load(x + tile_offsets(n, channel, pixel, C, S, LAST), mask=mask, other=0.0)
    v = v.to(tl.float32)
    out = (n.to(tl.int64) * C + channel) * chunks + chunk
    if CENTRE:
        mu = tl.sum(v, 1) / tl.minimum(S - chunk * BS, BS)
        v = tl.where(mask, v - mu[:, None], 0.0)
        tl.store(part_mean + out, mu, mask=channel < C)
    tl.store(part_m2 + out, tl.sum(v * v, 1), mask=channel < C)


@triton.jit
def _join_moments(
    part_mean, part_m2, mean, rstd, eps_pointer, S, chunks, width, eps,
    BS: tl.constexpr, BLOCK: tl.constexpr, CENTRE: tl.constexpr, DEVIATION: tl.constexpr,
    LEARNED: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    parts = width * chunks
    start = group.to(tl.int64) * parts
    count = width * 1.0 * S
    mu = 0.0
    if CENTRE:
        weighted = tl.zeros((BLOCK,), tl.float32)
        for i in range(0, parts, BLOCK):
            part = i + tl.arange(0, BLOCK)
            share = tl.minimum(S - part % chunks * BS, BS) / count
            m = tl.load(part_mean + start + part, mask=part < parts, other=0.0)
            weighted += tl.where(part < parts, m * share, 0.0)
        mu = tl.sum(weighted, 0)
        tl.store(mean + group, mu)
    squares = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, parts, BLOCK):
        part = i + tl.arange(0, BLOCK)
        squares += tl.load(part_m2 + start + part, mask=part < parts, other=0.0)
        if CENTRE:
            m = tl.load(part_mean + start + part, mask=part < parts, other=0.0) - mu
            size = tl.minimum(S - part % chunks * BS, BS)
            squares += tl.where(part < parts, m * m * size, 0.0)
    divisor = count
    if DEVIATION:
        divisor = count - 1
    r = _rstd(tl.sum(squares, 0) / divisor, eps, eps_pointer, DEVIATION, LEARNED)
    tl.store(rstd + group, r)


@triton.jit
def _split_apply(
    x, y, weight, bias, tau, mean, rstd, C, S, chunks, width,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, CENTRE: tl.constexpr,
    ACT: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, _ = _where_split(C, chunks, BC, BS)
    valid = channel < C
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    stat = (n * C + channel) // width
    a = tl.load(rstd + stat, mask=valid, other=0.0)
    if CENTRE:
        v -= tl.load(mean + stat, mask=valid, other=0.0)[:, None]
    a *= load_or(weight, channel, valid, 1.0, WEIGHT)
    b = load_or(bias, channel, valid, 0.0, BIAS)[:, None]
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    tl.store(y + at, _clamp(v * a[:, None] + b, t, ACT).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _split_sums(
    dy, x, weight, bias, tau, mean, rstd, part, rows, C, S, chunks, width,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, CENTRE: tl.constexpr,
    ACT: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, chunk = _where_split(C, chunks, BC, BS)
    valid = channel < C
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    stat = (n * C + channel) // width
    a = tl.load(rstd + stat, mask=valid, other=0.0)
    if CENTRE:
        v -= tl.load(mean + stat, mask=valid, other=0.0)[:, None]
    a *= load_or(weight, channel, valid, 1.0, WEIGHT)
    b = load_or(bias, channel, valid, 0.0, BIAS)[:, None]
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    kept = _kept(grad, v * a[:, None] + b, t, ACT)
    out = (n.to(tl.int64) * C + channel) * chunks + chunk
    tl.store(part + out, tl.sum(kept, 1), mask=valid)
    tl.store(part + rows * chunks + out, tl.sum(kept * v, 1), mask=valid)
    tl.store(part + 2 * rows * chunks + out, tl.sum(grad - kept, 1), mask=valid)


@triton.jit
def _join_sums(
    part, sums, weight, rstd, p, q, rows, C, S, chunks, width, eps,
    BLOCK: tl.constexpr, DEVIATION: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    r = tl.load(rstd + group)
    g0 = 0.0
    g1 = 0.0
    for i in range(width):
        row = group.to(tl.int64) * width + i
        v0 = tl.zeros((BLOCK,), tl.float32)
        v1 = tl.zeros((BLOCK,), tl.float32)
        vt = tl.zeros((BLOCK,), tl.float32)
        for j in range(0, chunks, BLOCK):
            chunk = j + tl.arange(0, BLOCK)
            at = part + row * chunks + chunk
            v0 += tl.load(at, mask=chunk < chunks, other=0.0)
            v1 += tl.load(at + rows * chunks, mask=chunk < chunks, other=0.0)
            vt += tl.load(at + 2 * rows * chunks, mask=chunk < chunks, other=0.0)
        s0 = tl.sum(v0, 0)
        s1 = tl.sum(v1, 0)
        tl.store(sums + row, s1 * r)
        tl.store(sums + rows + row, s0)
        tl.store(sums + 2 * rows + row, tl.sum(vt, 0))
        if WEIGHT:
            w = tl.load(weight + row % C).to(tl.float32)
            s0 *= w
            s1 *= w
        g0 += s0
        g1 += s1
    count = width * 1.0 * S
    tl.store(p + group, _slope(g1, r, count, eps, DEVIATION))
    tl.store(q + group, -g0 * r / count)


@triton.jit
def _split_grad(
    dy, x, dx, weight, bias, tau, mean, rstd, p, q, C, S, chunks, width,
    BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr, CENTRE: tl.constexpr,
    ACT: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAU: tl.constexpr,
):  # fmt: skip
    n, channel, pixel, _ = _where_split(C, chunks, BC, BS)
    valid = channel < C
    mask = valid[:, None] & (pixel < S)[None, :]
    at = tile_offsets(n, channel, pixel, C, S, LAST)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
    stat = (n * C + channel) // width
    a = tl.load(rstd + stat, mask=valid, other=0.0)
    if CENTRE:
        v -= tl.load(mean + stat, mask=valid, other=0.0)[:, None]
    a *= load_or(weight, channel, valid, 1.0, WEIGHT)
    b = load_or(bias, channel, valid, 0.0, BIAS)[:, None]
    t = load_or(tau, channel, valid, 0.0, TAU)[:, None]
    kept = _kept(grad, v * a[:, None] + b, t, ACT)
    result = kept * a[:, None] + v * tl.load(p + stat, mask=valid, other=0.0)[:, None]
    if CENTRE:
        result += tl.load(q + stat, mask=valid, other=0.0)[:, None]
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=mask)


def _whole_tile(v, kind, groups, limits):
    """Channels and pixels of a tile that holds whole rows (GN: a whole group), or None."""
    pixels = triton.next_power_of_2(v.s)
    if kind != "rms" and groups != v.c:
        channels = triton.next_power_of_2(v.c // groups)
        # A group of few channels in channels last would be read in very short pieces.
        fits = channels * pixels <= limits.whole and not (v.last and v.s > 1 and channels < 16)
        return (channels, pixels) if fits else None
    if v.last and v.s > 1:
        channels = min(triton.next_power_of_2(v.c), 32)
        return (channels, pixels) if channels * pixels <= limits.whole else None
    if pixels > limits.whole:
        return None
    return min(triton.next_power_of_2(v.c), max(1, limits.block // pixels)), pixels


def norm_forward(x, weight, bias, tau, learned_eps, kind, groups, eps, activation, limits=_LIMITS):
    v = view(x)
    y = torch.empty_like(v.x)
    rstd = torch.empty(v.n, groups, dtype=torch.float32, device=x.device)
    mean = torch.empty_like(rstd) if kind != "rms" else rstd.new_empty(0)
    if not x.numel():
        return y, mean, rstd
    flags = _flags(weight, bias, tau, kind, activation, v)
    stats = {"DEVIATION": kind == "deviation", "LEARNED": learned_eps is not None}
    tile = _whole_tile(v, kind, groups, limits)
    if tile is not None:
        bc, bs = tile
        grouped = kind != "rms" and groups != v.c
        programs = v.n * (groups if grouped else triton.cdiv(v.c, bc))
        _whole_forward[(programs,)](
            v.x, y, weight, bias, tau, mean, rstd, learned_eps, v.c, v.s, groups, eps,
            BC=bc, BS=bs, GROUPED=grouped, num_warps=warps(bc * bs), **stats, **flags,
        )  # fmt: skip
        return y, mean, rstd
    bc, bs = split(v, limits)
    chunks, width = triton.cdiv(v.s, bs), v.c // groups
    grid = (v.n * triton.cdiv(v.c, bc) * chunks,)
    part_m2 = rstd.new_empty(v.n * v.c * chunks)
    part_mean = torch.empty_like(part_m2) if kind != "rms" else mean
    _split_moments[grid](
        v.x, part_mean, part_m2, v.c, v.s, chunks,
        BC=bc, BS=bs, LAST=v.last, CENTRE=kind != "rms", num_warps=warps(bc * bs),
    )  # fmt: skip
    _join_moments[(v.n * groups,)](
        part_mean, part_m2, mean, rstd, learned_eps, v.s, chunks, width, eps,
        BS=bs, BLOCK=_join_block(width * chunks), CENTRE=kind != "rms", **stats,
    )  # fmt: skip
    _split_apply[grid](
        v.x, y, weight, bias, tau, mean, rstd, v.c, v.s, chunks, width,
        BC=bc, BS=bs, num_warps=warps(bc * bs), **flags,
    )  # fmt: skip
    return y, mean, rstd


def norm_backward(
    dy, x, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient,
    limits=_LIMITS,
):  # fmt: skip
    v = view(x)
    dy = dy.contiguous(memory_format=memory_format(v.x))
    dx = torch.empty_like(v.x)
    sums = rstd.new_empty(3, v.n, v.c)  # of every row: s1 * r, s0, st
    rows = v.n * v.c
    tile = _whole_tile(v, kind, groups, limits) if x.numel() else None
    flags = _flags(weight, bias, tau, kind, activation, v)
    if not x.numel():
        sums.zero_()
    elif tile is not None:
        bc, bs = tile
        grouped = kind != "rms" and groups != v.c
        programs = v.n * (groups if grouped else triton.cdiv(v.c, bc))
        _whole_backward[(programs,)](
            dy, v.x, dx, weight, bias, tau, mean, rstd, sums, rows, v.c, v.s, groups, eps,
            BC=bc, BS=bs, GROUPED=grouped, DEVIATION=kind == "deviation",
            num_warps=warps(bc * bs), **flags,
        )  # fmt: skip
    else:
        bc, bs = split(v, limits)
        chunks, width = triton.cdiv(v.s, bs), v.c // groups
        grid = (v.n * triton.cdiv(v.c, bc) * chunks,)
        part = rstd.new_empty(3 * rows * chunks)
        p, q = torch.empty_like(rstd), torch.empty_like(rstd)
        parameters = (weight, bias, tau, mean, rstd)
        tiles = {"BC": bc, "BS": bs, "num_warps": warps(bc * bs), **flags}
        _split_sums[grid](dy, v.x, *parameters, part, rows, v.c, v.s, chunks, width, **tiles)
        _join_sums[(v.n * groups,)](
            part, sums, weight, rstd, p, q, rows, v.c, v.s, chunks, width, eps,
            BLOCK=_join_block(chunks), DEVIATION=kind == "deviation", WEIGHT=flags["WEIGHT"],
        )  # fmt: skip
        _split_grad[grid](dy, v.x, dx, *parameters, p, q, v.c, v.s, chunks, width, **tiles)
    deps = rstd.new_empty(0)
    if eps_gradient:
        by_row = sums[0] if weight is None else sums[0] * weight
        deps = (-0.5 * (by_row * rstd.square()).sum()).reshape(1)
    return dx, sums.sum(1), deps


def _join_block(parts: int) -> int:
    return min(1024, max(16, triton.next_power_of_2(parts)))


def _flags(weight, bias, tau, kind, activation, v):
    return {
        "LAST": v.last,
        "CENTRE": kind != "rms",
        "ACT": activation is not None,
        "WEIGHT": weight is not None,
        "BIAS": bias is not None,
        "TAU": tau is not None,
    }
