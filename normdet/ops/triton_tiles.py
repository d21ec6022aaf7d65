"""How the Triton kernels cut a tensor `(N, C, S)`, contiguous or channels last, into tiles.

Every kernel works on a tile of some channels by some pixels of one example. Block sizes are powers
of two from a short list, so that no height or width compiles a kernel of its own.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from normdet.errors import NormdetError
from normdet.ops.layout import memory_format

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Limits(NamedTuple):
    """Sizes that decide between the regimes; tests shrink them to reach each with small inputs."""

    whole: int = 16384  # most elements that one program holds at once
    block: int = 4096  # elements of a tile where a row is split, or many rows share a program


class View(NamedTuple):
    """`x` in one of the two layouts and its sizes."""

    x: Tensor
    last: bool
    n: int
    c: int
    s: int


def view(x: Tensor) -> View:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != "cuda" and not interpreted:
        raise NormdetError(f"backend 'triton' computes on CUDA, and the input is on {x.device}")
    if x.dtype not in _DTYPES:
        raise NormdetError(f"backend 'triton' computes fp16, bf16 and fp32, not {x.dtype}")
    form = memory_format(x)
    n, c = x.shape[:2]
    s = x.shape[2:].numel()
    return View(
        x.contiguous(memory_format=form), form != torch.contiguous_format or s == 1, n, c, s
    )


def split(v: View, limits: Limits) -> tuple[int, int]:
    """Channels and pixels of a tile: long along whichever is contiguous in memory."""
    channels, pixels = triton.next_power_of_2(v.c), triton.next_power_of_2(v.s)
    if v.last:
        channels = min(channels, 64, limits.block)
        return channels, min(pixels, max(1, limits.block // channels))
    pixels = min(pixels, limits.block)
    return min(channels, max(1, limits.block // pixels)), pixels


def warps(elements: int) -> int:
    return 4 if elements <= 4096 else 8 if elements <= 8192 else 16


@triton.jit
def tile_offsets(n, channel, pixel, C, S, LAST: tl.constexpr):
    """Where `channel` `(BC,)` by `pixel` `(BS,)` of example `n` lie in memory."""
    start = n.to(tl.int64) * C * S
    if LAST:
        return start + pixel[None, :].to(tl.int64) * C + channel[:, None]
    return start + channel[:, None].to(tl.int64) * S + pixel[None, :]


@triton.jit
def load_or(pointer, index, mask, default: tl.constexpr, GIVEN: tl.constexpr):
    """A parameter per channel in fp32, or its default where there is none."""
    if GIVEN:
        return tl.load(pointer + index, mask=mask, other=0.0).to(tl.float32)
    return tl.full(index.shape, default, tl.float32)
