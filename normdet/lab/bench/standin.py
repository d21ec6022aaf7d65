"""A driver that stands in for a GPU: Triton's launches, on the host alone.

`standing_in()` puts a library of empty functions in the place of `libcuda.so.1`
(`csrc/driver.c`) and makes Triton take CPU tensors for those of a GPU. Kernels are compiled for the
target, loaded and launched by Triton's own code, and never run: results hold whatever memory held.
Good for two things: the time a call takes on the host, and the counts of launches and compilations.
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
    """The stand-in, built and loaded under the name that Triton looks for, and its folder."""
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
    """Context in which the backend "triton" takes CPU tensors and launches without effect.

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
    found.get_current_device = lambda: 0
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
