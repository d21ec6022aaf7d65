"""Compiling a Triton kernel and launching it in as little host time as possible.

`kernel[grid](...)` inspects every argument at every call. Here a plan is made once for a shape. It
holds the compiled kernels and passes them their arguments. :class:`Kernel` states everything that a
kernel is compiled for, so it can also be compiled for a GPU that this machine lacks.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime import driver

from normdet.errors import NormdetError
from normdet.ops.triton_tiles import INTERPRETED


class Kernel(NamedTuple):
    """A jitted function and everything that its machine code depends on.

    Attributes:
        types: of its arguments up to the constants: `"*bf16"`, `"i32"`, `"fp32"`, or None for an
            argument that is not given.
        constants: the values of the others.
        warps: of a program, of 32 threads each.
        wide: how many of the first arguments start at a multiple of 16 bytes.
    """

    function: Callable
    types: tuple[str | None, ...]
    constants: tuple
    warps: int
    wide: int

    def compile(self, target=None):
        """Machine code for a target, by default for the current device."""
        names = self.function.arg_names
        given = (*self.types, *["constexpr"] * len(self.constants))
        signature = {n: t or "constexpr" for n, t in zip(names, given, strict=True)}
        values = (*[None] * len(self.types), *self.constants)
        constants = {(i,): v for i, v in enumerate(values) if signature[names[i]] == "constexpr"}
        pointers = [i for i, kind in enumerate(self.types[: self.wide]) if kind]
        attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
        source = ASTSource(self.function, signature, constants, attributes)
        target = target or driver.active.get_current_target()
        wide = max(1, self.warps * 32 // target.warp_size)  # AMD's hold 64 threads
        return triton.compile(source, target=target, options={"num_warps": wide})


@functools.cache
def compiled(kernel: Kernel, device: int):
    """A kernel's machine code, loaded to a device, which must be current."""
    return kernel.compile()


class Launch:
    """A kernel with its grid and its numbers: called with a stream and the tensors alone.

    Args:
        numbers: the arguments between the tensors and the constants.
    """

    __slots__ = ("_function", "_grid", "_packed", "_run", "_tail", "kernel")

    def __init__(self, kernel: Kernel, grid: int, numbers: tuple):
        self.kernel = kernel
        self._grid = grid
        self._tail = (*numbers, *kernel.constants)
        self._run = self._function = self._packed = None

    def __call__(self, stream: int, *tensors: Tensor | None) -> None:
        if self._run is None:
            self._load()
        self._run(
            self._grid, 1, 1, stream, self._function, self._packed, None, None, None,
            *tensors, *self._tail,
        )  # fmt: skip

    def _load(self) -> None:
        if INTERPRETED:
            self._run = self._interpret
            return
        binary = compiled(self.kernel, driver.active.get_current_device())
        self._run = binary.run  # loads the code, which sets `function`
        self._function, self._packed = binary.function, binary.packed_metadata

    def _interpret(self, grid, _y, _z, _stream, _function, _packed, _data, _enter, _exit, *args):
        self.kernel.function[(grid,)](*args)


def make_launch(
    function, tensors: tuple, numbers: tuple, constants: tuple, *, grid: int, warps: int, wide: int
) -> Launch:
    """A launch of `function` with arguments of these types.

    Args:
        tensors: the dtype of each by Triton's name (`"bf16"`), or None for one that is not given.
        numbers: whole numbers, or a float.
    """
    kinds = ("fp32" if isinstance(v, float) else "i32" for v in numbers)
    types = (*(t and f"*{t}" for t in tensors), *kinds)
    return Launch(Kernel(function, types, constants, warps, wide), grid, numbers)


def current_device() -> int | None:
    """The index of the current device as `x.get_device()` counts: -1 is the CPU; or None."""
    if INTERPRETED:
        return -1
    try:
        return driver.active.get_current_device()
    except (RuntimeError, AttributeError):  # there is none; old Tritons say so in other words
        return None


def elsewhere(run: Callable, x: Tensor, *inputs):
    """`run(x, ...)` with the device of `x` the current one.

    Raises:
        NormdetError: it is not a CUDA device.
    """
    if not x.is_cuda:
        raise NormdetError(f"backend 'triton' computes on CUDA, and the input is on {x.device}")
    with torch.cuda.device(x.device):
        return run(x, *inputs)


def stream(device: int) -> int:
    """The current stream of a device."""
    return 0 if INTERPRETED else driver.active.get_current_stream(device)
