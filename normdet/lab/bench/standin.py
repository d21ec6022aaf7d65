"""A stand-in for a GPU's driver, so that Triton's launches run on the host alone.

`standing_in()` replaces `libcuda.so.1` by a library of empty functions (`csrc/driver.c`) and makes
Triton take CPU tensors for a GPU's. Triton's own code compiles kernels for the target, loads and
launches them, but they never run, so results are uninitialized memory. It serves to measure the
host's time for a call, and to count launches and compilations.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from normdet.errors import NormdetError

_SOURCE = Path(__file__).parent / "csrc" / "driver.c"


@functools.cache
def _library() -> tuple[ctypes.CDLL, str]:
    """Build and load the stand-in under the name that Triton expects; return it and its folder."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NormdetError("the stand-in for a GPU's driver needs a C compiler (cc, gcc or $CC)")
    folder = tempfile.mkdtemp(prefix="normdet-driver-")
    path = f"{folder}/libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", str(_SOURCE)]
    subprocess.run([*command, "-o", path], check=True, capture_output=True, text=True)
    os.symlink(path, f"{folder}/libcuda.so")
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL), folder


@contextlib.contextmanager
def standing_in(capability: int = 90) -> Iterator[ctypes.CDLL]:
    """Inside, the backend "triton" takes CPU tensors, and launches have no effect.

    Args:
        capability: of the GPU that kernels are compiled for, 90 for an H100.

    Yields:
        The library; `normdet_launches()` counts.

    Raises:
        NormdetError: there is no C compiler.
    """
    library, folder = _library()
    os.environ["TRITON_LIBCUDA_PATH"] = folder
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    found = CudaDriver()
    found.get_current_device = lambda: -1  # as CPU tensors count
    found.set_current_device = lambda device: None
    found.get_current_stream = lambda device: 0
    found.get_device_capability = lambda device=0: divmod(capability, 10)
    found.get_active_torch_device = lambda: torch.device("cpu")
    before = driver._active
    driver.set_active(found)
    try:
        yield library
    finally:
        driver._active = before
