"""The Triton kernel that adds up the sums of programs, channel by channel."""

import triton
import triton.language as tl

from normdet.ops.triton_launch import Launch, make_launch
from normdet.ops.triton_tiles import ceil, store_if

_CHANNELS, _SLABS = 32, 32  # of a tile


@triton.jit
def join_slabs(sums, first, second, third, fourth, slabs, C, BC: tl.constexpr, BJ: tl.constexpr):
    """The sums over the slabs of `sums` `(kinds, slabs, C)`, of each kind into its own `(C,)`."""
    blocks = tl.cdiv(C, BC)
    kind = tl.program_id(0) // blocks
    begin = tl.program_id(0) % blocks * BC
    total = tl.zeros((BJ, BC), tl.float32)
    for start in range(0, slabs, BJ):
        slab = start + tl.arange(0, BJ)[:, None]
        channel = begin + tl.arange(0, BC)[None, :]
        mask = (slab < slabs) & (channel < C)
        total += tl.load(sums + (kind * slabs + slab) * C + channel, mask=mask, other=0.0)
    channel = begin + tl.arange(0, BC)
    store_if(first, channel, tl.sum(total, 0), (channel < C) & (kind == 0))
    store_if(second, channel, tl.sum(total, 0), (channel < C) & (kind == 1))
    store_if(third, channel, tl.sum(total, 0), (channel < C) & (kind == 2))
    store_if(fourth, channel, tl.sum(total, 0), (channel < C) & (kind == 3))


def make_join(outputs: tuple[str | None, ...], slabs: int, channels: int) -> Launch:
    """The launch of :func:`join_slabs`; torch's own sum keeps the host three times as long.

    Args:
        outputs: the type of each kind's sum, None if it is not wanted.
    """
    kinds = max(i for i, kind in enumerate(outputs) if kind) + 1
    return make_launch(
        join_slabs, ("fp32", *outputs), (slabs, channels), (_CHANNELS, _SLABS),
        grid=kinds * ceil(channels, _CHANNELS), warps=4, wide=0,
    )  # fmt: skip
