"""The CPU kernels of `csrc/ops.cpp`: built at first use in seconds, kept in the user's cache.

The library has a plain C interface, so that it needs neither torch's headers nor a rebuild with
another torch. It is compiled for the processor it runs on.
"""

import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from normdet.errors import NormdetError
from normdet.ops.layout import are_rows, fill_outside, memory_format

_SOURCE = Path(__file__).parent / "csrc" / "ops.cpp"
_FLAGS = "-std=gnu++17 -O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp"
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_KINDS = {"rms": 0, "group": 1, "deviation": 2}
_CALL = struct.Struct("@10q d 11P")  # `Call` of ops.cpp: one pointer passes faster than 20 words
_log = logging.getLogger(__name__)


@functools.cache
def available() -> bool:
    """Whether the kernels are available; builds them if needed (some seconds, once per machine)."""
    try:
        _library()
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("no compiled CPU kernels, using plain torch: %s", str(reason).strip()[-300:])
        return False
    return True


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (c++, g++, clang++ or $CXX) found")
    path = _cache() / f"ops-{_fingerprint(compiler)}.so"
    if not path.exists():
        _log.info("building the CPU kernels (once): %s", path)
        _build(shlex.split(compiler), path)
    library = ctypes.CDLL(str(path))
    for name in ("norm_forward", "norm_backward", "point_forward", "point_backward"):
        function = getattr(library, f"normdet_{name}")
        function.argtypes, function.restype = [ctypes.c_char_p], None
    return library


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "normdet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="normdet-"))  # a home that cannot be written to


def _fingerprint(compiler: str) -> str:
    """A key of source, compiler and processor, since different machines may share a home."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    parts = [_SOURCE.read_text(), _FLAGS, compiler, platform.machine(), platform.system(), flags]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(compiler: list[str], path: Path) -> None:
    """Compile into a temporary file, then rename it, since several processes may build at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / "ops.so"
        command = [*compiler, *_FLAGS.split(), "-shared", str(_SOURCE), "-o", str(built)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(built, path)


def norm_forward(
    x, residual, weight, bias, tau, learned_eps, kind, groups, eps, activation, dtype=None,
    extents=None,
):  # fmt: skip
    if dtype is not None and dtype is not x.dtype:
        x = x.to(dtype)
    x, last, shape = _prepare(x)
    eps = eps if learned_eps is None else learned_eps.item()
    y = torch.empty_like(x)
    rstd = torch.empty(shape[0], groups, dtype=_wide_dtype(x))
    mean = None if kind == "rms" else torch.empty_like(rstd)
    if residual is not None:
        residual = _alike(residual.to(x.dtype), x)
    if are_rows(groups, residual, weight, bias, tau, learned_eps, extents):
        last, shape, groups = _as_rows(shape)
    weight, bias, tau = _parameters(rstd.dtype, weight, bias, tau)
    if x.numel():
        call = _call(
            x, last, shape, activation, residual, weight, bias, tau, y,
            mean, rstd, None, None, _KINDS[kind], groups, eps, extents,
        )  # fmt: skip
        _library().normdet_norm_forward(call)
    return y, mean, rstd


def norm_backward(
    dy, x, out, mean, rstd, weight, bias, tau, kind, groups, eps, activation, eps_gradient,
    extents=None,
):  # fmt: skip
    if out is not None:
        return _joined_backward(
            dy, x, out, mean, rstd, weight, bias, tau, extents, kind, groups, eps, activation,
            eps_gradient,
        )  # fmt: skip
    dtype = x.dtype
    x, last, shape = _prepare(x.to(dy.dtype))
    dy = _alike(dy, x)
    dx = torch.empty_like(x)
    trained = eps_gradient or not (weight is bias is tau is None)
    if not trained and are_rows(groups, extents):
        last, shape, groups = _as_rows(shape)
    by_channel = torch.zeros(3, shape[1], dtype=rstd.dtype)
    deps = torch.zeros(1, dtype=rstd.dtype) if eps_gradient else None
    weight, bias, tau = _parameters(rstd.dtype, weight, bias, tau)
    if x.numel():
        call = _call(
            x, last, shape, activation, dy, weight, bias, tau, dx,
            mean, rstd, by_channel, deps, _KINDS[kind], groups, eps, extents,
        )  # fmt: skip
        _library().normdet_norm_backward(call)
    return dx.to(dtype), None, by_channel if trained else None, deps


def _joined_backward(dy, x, out, mean, rstd, weight, bias, tau, extents, *options):
    """The gradient of the sum that passes the activation is the residual's and the norm's."""
    *options, activation, eps_gradient = options
    dtau = None
    if extents is not None:
        dy = fill_outside(dy.clone(), extents.tolist())
    if activation is not None:
        dy, _, dtau = point_backward(dy, out, None, True, tau)
    dx, _, by_channel, deps = norm_backward(
        dy, x, None, mean, rstd, weight, bias, None, *options, None, eps_gradient, extents
    )
    if dtau is not None and by_channel is None:
        by_channel = torch.zeros(3, x.shape[1], dtype=rstd.dtype)
    if dtau is not None:
        by_channel[2] = dtau
    return dx, dy, by_channel, deps


def point_forward(x, residual, scale, shift, tau, activation):
    x, last, shape = _prepare(x)
    if residual is not None:
        residual = _alike(residual, x)
    y = torch.empty_like(x)
    scale, shift, tau = _parameters(_wide_dtype(x), scale, shift, tau)
    if x.numel():
        _library().normdet_point_forward(
            _call(x, last, shape, activation, residual, scale, shift, tau, y)
        )
    return y


def point_backward(dy, y, scale, joined, tau):
    if scale is not None and joined:  # there are two gradients; the kernel writes one
        dsum, _, dtau = point_backward(dy, y, None, True, tau)
        rows = scale.to(dsum.dtype).reshape(1, -1, *[1] * (dsum.dim() - 2))
        return dsum * rows, dsum, dtau
    y, last, shape = _prepare(y)
    dy = _alike(dy, y)
    dx = torch.empty_like(y)
    dtau = torch.zeros(shape[1], dtype=_wide_dtype(y))
    scale, tau = _parameters(dtau.dtype, scale, tau)
    if y.numel():
        _library().normdet_point_backward(
            _call(y, last, shape, "", dy, scale, None, tau, dx, by_channel=dtau)
        )
    return dx, None, None if tau is None else dtau


def _call(
    x, last, shape, activation, x2, weight, bias, tau, out,
    mean=None, rstd=None, by_channel=None, deps=None, kind=0, groups=1, eps=0.0, extents=None,
) -> bytes:  # fmt: skip
    """The arguments of a kernel, as `Call` of ops.cpp lays them out."""
    return _CALL.pack(
        _DTYPES[x.dtype], last, kind, activation is not None, torch.get_num_threads(),
        *shape, groups, x.shape[-1], eps, x.data_ptr(), _pointer(x2), _pointer(weight),
        _pointer(bias), _pointer(tau), out.data_ptr(), _pointer(mean), _pointer(rstd),
        _pointer(by_channel), _pointer(deps), _pointer(extents),
    )  # fmt: skip


def _prepare(x: Tensor) -> tuple[Tensor, bool, tuple[int, int, int]]:
    """`x` in one of the two layouts, whether that is channels last, and `(N, C, S)`."""
    if x.device.type != "cpu":
        raise NormdetError(f"backend 'cpp' computes on the CPU, and the input is on {x.device}")
    n, c, *space = x.shape
    s = math.prod(space)
    # A single pixel has the same memory in both layouts; vectors then run over the channels.
    if x.is_contiguous():
        return x, s == 1, (n, c, s)
    form = memory_format(x)
    return x.contiguous(memory_format=form), form != torch.contiguous_format or s == 1, (n, c, s)


def _as_rows(shape: tuple[int, int, int]) -> tuple[bool, tuple[int, int, int], int]:
    """Layout, sizes and groups of dense examples taken for the channels of one."""
    n, c, s = shape
    return c * s == 1, (1, n, c * s), n


def _alike(other: Tensor, x: Tensor) -> Tensor:
    """`other` laid out as the prepared `x`."""
    if other.is_contiguous() and x.is_contiguous():
        return other
    return other.contiguous(memory_format=memory_format(x))


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _parameters(dtype: torch.dtype, *parameters: Tensor | None) -> list[Tensor | None]:
    return [
        p if p is None or (p.dtype is dtype and p.is_contiguous()) else p.to(dtype).contiguous()
        for p in parameters
    ]


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
