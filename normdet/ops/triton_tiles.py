"""How the Triton kernels cut a tensor `(N, C, S)`, contiguous or channels last, into tiles.

A program holds one tile of some channels by some pixels of an example at a time and walks along the
pixels. Tiles have one size for all heights and widths: a thread reads 16 bytes of each tensor at
once, needs few registers, and no image size compiles a new kernel. A second read of the same
element comes from the cache.

The size along memory (`S`, or `C` in channels last) is passed as `inner * VEC` with `VEC` a
constant. So the compiler knows that rows are aligned for wide loads.
"""

import math
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normdet.errors import NormdetError
from normdet.ops.layout import memory_format

DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
THREAD_ELEMENTS = 8  # elements of a tile per thread: 16 bytes in half precision


class Limits(NamedTuple):
    """Sizes that decide between the regimes; tests shrink them to reach each with small inputs."""

    whole: int = 256  # most pixels of a row that one program normalizes from start to end
    rows: int = 16  # of a tile, where rows are contiguous
    columns: int = 64
    flat: int = 1024  # columns of a tile of a single row
    programs: int = 2048  # enough to keep a large GPU busy
    steps: int = 4  # least tiles of a part of a row, so that a program is worth starting


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """`x`, copied only if it has neither layout, and whether it is channels last."""
    if x.is_contiguous():
        return x, False
    form = memory_format(x)
    return x.contiguous(memory_format=form), form != torch.contiguous_format


def check_dtype(x: Tensor) -> None:
    """Refuse what the kernels do not compute.

    Raises:
        NormdetError: the dtype is none of theirs.
    """
    if x.dtype not in DTYPES:
        raise NormdetError(f"backend 'triton' computes fp16, bf16 and fp32, not {x.dtype}")


def alike(other: Tensor, x: Tensor) -> Tensor:
    """`other` laid out as the dense `x`."""
    if other.is_contiguous() and x.is_contiguous():
        return other
    return other.contiguous(memory_format=memory_format(x))


def aligned(x: Tensor, other: Tensor | None = None) -> bool:
    """Whether both start at a multiple of 16 bytes, which wide loads need."""
    addresses = x.data_ptr() if other is None else x.data_ptr() | other.data_ptr()
    return addresses % 16 == 0


def vector(length: int, itemsize: int, limits: Limits) -> int:
    """How many elements of a run of `length` a thread may read at once, 16 bytes at most."""
    return math.gcd(length, 16 // itemsize, limits.columns)


def ceil(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def power(a: int) -> int:
    """The least power of two that is at least `a`."""
    return 1 << max(0, a - 1).bit_length()


def warps(elements: int, vec: int) -> int:
    """The warps for a tile of this many elements, if a thread reads `vec` at once.

    Elements read one by one need an address each, so threads get fewer of them.
    """
    return min(16, max(1, power(elements) // (32 * (THREAD_ELEMENTS if vec > 1 else 4))))


class Walk(NamedTuple):
    """How programs share the pixels of rows: `parts` of `steps` tiles each."""

    rows: int  # of a tile
    columns: int
    blocks: int  # of channels
    parts: int
    steps: int
    grid: int

    @property
    def length(self) -> int:
        """Pixels of a part."""
        return self.steps * self.columns


def walk(n: int, c: int, s: int, last: bool, limits: Limits, flat: bool = False) -> Walk:
    """The tiles of a tensor whose rows are cut into parts.

    Args:
        flat: tiles of a single row, if no channel's parameters are needed.
    """
    rows, columns = (limits.columns, limits.rows) if last else (limits.rows, limits.columns)
    if flat:
        rows, columns = 1, limits.flat
    blocks, steps = ceil(c, rows), ceil(s, columns)
    parts = min(ceil(limits.programs, n * blocks), max(1, steps // limits.steps))
    each = ceil(steps, parts)
    parts = ceil(steps, each)
    return Walk(rows, columns, blocks, parts, each, n * blocks * parts)


def along_memory(c: int, s: int, last: bool, vec: int) -> tuple[int, int]:
    """`outer` and `inner` of :func:`sizes`."""
    return (s, c // vec) if last else (c, s // vec)


@triton.jit
def sizes(outer, inner, VEC: tl.constexpr, LAST: tl.constexpr):
    """`C` and `S`; the one along memory is a multiple of `VEC`."""
    if LAST:
        return inner * VEC, outer
    return outer, inner * VEC


@triton.jit
def origin(n, channel, C, S, LAST: tl.constexpr):
    """The offset of a channel of an example, in 64 bits."""
    example = tl.cast(n, tl.int64) * C * S
    if LAST:
        return example + channel
    return example + tl.cast(channel, tl.int64) * S


@triton.jit
def stride(C, LAST: tl.constexpr):
    """The distance between pixels, in 64 bits."""
    if LAST:
        return tl.cast(C, tl.int64)
    return tl.cast(1, tl.int64)


@triton.jit
def tile(C, S, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """Offsets of a tile's elements `(BC, BS)` from its first."""
    row = tl.arange(0, BC)[:, None]
    pixel = tl.arange(0, BS)[None, :]
    if LAST:
        return pixel * C + row
    return row * S + pixel


@triton.jit
def inside(valid, start, S, BS: tl.constexpr):
    """Which elements of the tile at pixel `start` exist."""
    return valid[:, None] & (start + tl.arange(0, BS) < S)[None, :]


@triton.jit
def where_split(C, blocks, parts, BC: tl.constexpr):
    """A program's example, block of channels, part of the rows, and channels."""
    program = tl.program_id(0)
    part = program % parts
    block = program // parts % blocks
    n = program // parts // blocks
    return n, block, part, block * BC + tl.arange(0, BC)


@triton.jit
def load_or(pointer, index, mask, default: tl.constexpr):
    """A parameter per channel in fp32, or its default if there is none."""
    if pointer is not None:
        return tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32)
    return tl.full(index.shape, default, tl.float32)


@triton.jit
def store_if(pointer, index, value, mask):
    """Store to a pointer that may be missing."""
    if pointer is not None:
        tl.store(pointer + index, value, mask=mask)


@triton.jit
def load_tile(x, at, mask):
    return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def clamp(z, t, ACT: tl.constexpr):
    if ACT:
        return tl.where(z <= t, t, z)  # this form lets NaN pass
    return z


@triton.jit
def kept(dy, z, t, ACT: tl.constexpr):
    if ACT:
        return tl.where(z <= t, 0.0, dy)
    return dy
