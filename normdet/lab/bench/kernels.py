"""Examine the machine code of the Triton kernels, for GPUs that this machine need not have.

A row is a norm's forward or backward at a detector's shape. It has the registers, spilled bytes,
shared memory, widest load and instructions of the kernels, the number of launches, and the host's
time for a call beyond an operation that does nothing (:mod:`normdet.lab.bench.standin`). Nothing
runs on a GPU, so the table says nothing about the time there.
"""

import datetime
import functools
import os
import random
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from normdet import ops
from normdet.errors import NormdetError

COLUMNS = (
    "date versions target op shape dtype layout pass kernels registers spilled_bytes "
    "shared_bytes widest_load_bits instructions launches host_us_over_noop"
).split()
TARGETS = ("sm_80", "sm_90", "gfx942")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# (N, C, S): two images of 800 x 1344, coarse maps of smaller ones, regions, and FC layers.
SHAPES = [
    (2, 64, 400 * 672), (2, 256, 200 * 336), (2, 128, 100 * 168), (2, 512, 100 * 168),
    (2, 1024, 50 * 84), (2, 2048, 25 * 42), (2, 256, 25 * 42), (2, 512, 23 * 31), (2, 256, 13 * 21),
    (256, 256, 14 * 14), (1024, 256, 7 * 7), (512, 1024, 1),
]  # fmt: skip
SHORT = [(2, 1024, 50 * 84), (2, 256, 25 * 42), (1024, 256, 7 * 7)]
FILTERS = [(64, 9 * 64), (512, 9 * 512), (2048, 512)]


class Case(NamedTuple):
    """A norm at a shape `(N, C, S)`.

    Attributes:
        groups: as the operators count them; 0 for frozen statistics and for a bare join.
    """

    op: str
    kind: str
    groups: int
    activation: str | None
    joined: bool
    shape: tuple[int, int, int]
    dtype: str
    last: bool


@dataclass
class MachineCode:
    """The machine code of one kernel in numbers."""

    registers: int
    spilled: int
    shared: int
    widest: int
    instructions: int
    faults: list[str] = field(default_factory=list)


def cases(short: bool = False) -> Iterator[Case]:
    """The table's rows: everything in bf16, the most used also in fp16 and fp32."""
    norms = [
        ("FRN+TLU", "rms", None, "TLU", False), ("GN+ReLU", "group", 32, "ReLU", False),
        ("GN, join", "group", 32, "ReLU", True), ("FRN, join+TLU", "rms", None, "TLU", True),
        ("GN", "group", 32, None, False), ("FRN", "rms", None, None, False),
        ("LN+ReLU", "group", 1, "ReLU", False), ("FrozenBN+ReLU", "point", 0, "ReLU", False),
        ("FrozenBN, join", "point", 0, "ReLU", True), ("join+TLU", "join", 0, "TLU", True),
        ("join", "join", 0, "ReLU", True),
    ]  # fmt: skip
    for dtype in ("bf16",) if short else DTYPES:
        chosen = norms[:3] if short else norms if dtype == "bf16" else norms[:2]
        for name, kind, groups, activation, joined in chosen:
            for shape in SHORT if short else SHAPES:
                if shape[2] == 1 and groups is not None:
                    continue  # groups of an FC layer: few elements, read four at a time
                for last in (False, True) if shape[2] > 1 else (False,):
                    count = shape[1] if groups is None else groups
                    yield Case(name, kind, count, activation, joined, shape, dtype, last)
        for filters, fan in FILTERS[:1] if short else FILTERS:
            yield Case("WS", "deviation", filters, None, False, (1, filters, fan), dtype, False)


def launches(case: Case) -> dict[str, list]:
    """The launches of forward and backward, by their plans."""
    from normdet.ops import triton_norm, triton_point

    n, c, s = case.shape
    x, last = DTYPES[case.dtype], case.last or s == 1
    wide = torch.float32
    tau = wide if case.activation == "TLU" else None
    residual = x if case.joined else None
    if case.kind in ("point", "join"):
        affine = wide if case.kind == "point" else None
        site = triton_point.Site(
            n, c, s, last, case.activation, True, x, case.joined, affine, affine, tau,
            triton_point._LIMITS,
        )  # fmt: skip
        return {"forward": [site.forward()], "backward": [x for x in site.backward() if x]}
    affine = None if case.kind == "deviation" else wide
    site = triton_norm.Site(
        n, c, s, last, case.kind, case.groups, 1e-5, case.activation, True, x, x, residual, affine,
        affine, tau, None, triton_norm._LIMITS,
    )  # fmt: skip
    return {
        "forward": list(triton_norm.Forward(site).launches),
        "backward": list(triton_norm.Backward(site).launches),
    }


@functools.cache
def examine(kernel, target: str) -> MachineCode:
    """A kernel's machine code for a target such as `"sm_90"` or `"gfx942"`."""
    from triton.backends.compiler import GPUTarget

    cuda = target.startswith("sm_")
    where = GPUTarget("cuda", int(target[3:]), 32) if cuda else GPUTarget("hip", target, 64)
    code = kernel.compile(where)
    found = _examine_cuda(code, target) if cuda else _examine_hip(code)
    found.shared = code.metadata.shared
    if found.spilled:
        found.faults.append(f"spills {found.spilled} bytes")
    sizes = [_BYTES[kind] for kind in kernel.types[: kernel.wide] if kind]
    vec = kernel.constants[0]
    if sizes and vec * min(sizes) >= 16 and found.widest < 128:
        found.faults.append(f"reads {found.widest} bits at a time of rows that allow 128")
    return found


_BYTES = {"*bf16": 2, "*fp16": 2, "*fp32": 4}


def _examine_cuda(code, target: str) -> MachineCode:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(code.asm["ptx"])
        architecture = re.search(r"\.target (\w+)", code.asm["ptx"])[1]
        command = [tool, "-v", "--gpu-name", architecture, source, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    text = code.asm["ptx"]
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", text)
    body = text[text.index("{") :]
    return MachineCode(
        registers=int(re.search(r"Used (\d+) registers", log)[1]),
        spilled=sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        shared=0,
        widest=max((int(v or 1) * int(bits) for v, bits in loads), default=0),
        instructions=len(re.findall(r"^\s+(?:@!?%p\d+ )?[a-z][\w.]*.*;$", body, re.MULTILINE)),
    )


def _examine_hip(code) -> MachineCode:
    text = code.asm["amdgcn"]
    loads = re.findall(r"(?:global|buffer)_load_(?:dword(x\d)?|\w*?(short|ubyte|b\d+)\w*)", text)
    widths = [32 * int(x[1:]) if x else 16 if other else 32 for x, other in loads]
    return MachineCode(
        registers=int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1]),
        spilled=4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1]),
        shared=0,
        widest=max(widths, default=0),
        instructions=len(re.findall(r"^\t[a-z]\w+", text, re.MULTILINE)),
    )


def rows(targets: Iterable[str], short: bool = False, host: bool = True) -> Iterator[dict]:
    """One row per target, case and pass; `faults` names errors."""
    times = host_times(cases(short)) if host else {}
    for case in cases(short):
        for direction, found in launches(case).items():
            for target in targets:
                codes, faults = [], []
                for launch in found:
                    try:
                        codes.append(examine(launch.kernel, target))
                    except Exception as error:  # a compiler can raise any exception
                        faults.append(f"does not compile: {str(error)[:200]}")
                faults += [fault for code in codes for fault in code.faults]
                yield {
                    "date": datetime.date.today().isoformat(),
                    "target": target,
                    "op": case.op,
                    "shape": "x".join(map(str, case.shape)),
                    "dtype": case.dtype,
                    "layout": "channels_last" if case.last else "contiguous",
                    "pass": direction,
                    "kernels": " ".join(x.kernel.function.__name__ for x in found),
                    "registers": max((r.registers for r in codes), default=None),
                    "spilled_bytes": sum(r.spilled for r in codes),
                    "shared_bytes": max((r.shared for r in codes), default=None),
                    "widest_load_bits": min((r.widest for r in codes), default=None),
                    "instructions": sum(r.instructions for r in codes),
                    "launches": len(found),
                    "host_us_over_noop": times.get((case, direction)),
                    "faults": faults,
                }


# ---- the host's time ----------------------------------------------------------------------------


class _Nothing(torch.autograd.Function):
    """An operation that saves and returns tensors as a norm does, and computes nothing."""

    @staticmethod
    def forward(ctx, x, *given):
        ctx.save_for_backward(x, *given)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, dy):
        return tuple(torch.empty_like(given) for given in ctx.saved_tensors)


def host_times(wanted: Iterable[Case]) -> dict[tuple[Case, str], float]:
    """Microseconds of processor time that a call takes beyond :class:`_Nothing`.

    The shortest of many rounds, alternating with the operation that does nothing. Measures only
    small contiguous maps of bf16: the host's time does not depend on the size, and small maps keep
    the time for allocating memory low.
    """
    from normdet.lab.bench.standin import standing_in

    # torch counts GPUs at the first backward; do that before the stand-in driver is loaded.
    torch.ones(1, requires_grad=True).sum().backward()
    times = {}
    with standing_in():
        for case in wanted:
            if case.dtype == "bf16" and not case.last and case.kind in ("rms", "group"):
                times |= _host_time(case)
    return times


def _host_time(case: Case) -> dict[tuple[Case, str], float]:
    n, c, s = case.shape
    small = (min(n, 8), c, s, 1) if s > 1 else (min(n, 8), c)
    x = torch.zeros(small, dtype=torch.bfloat16, requires_grad=True)
    count = 3 if case.activation == "TLU" else 2
    parameters = [torch.zeros(c, requires_grad=True) for _ in range(count)]
    residual = torch.zeros_like(x, requires_grad=True) if case.joined else None
    given = [x, *parameters, *([residual] if case.joined else [])]
    dy = torch.zeros_like(x)
    options = {
        "activation": case.activation, "residual": residual, "backend": "triton", "eps": 1e-5
    }  # fmt: skip

    def norm():
        if case.kind == "rms":
            return ops.frn_tlu(x, *parameters, **options)
        return ops.group_norm_act(x, case.groups, *parameters, **options)

    def nothing():
        return _Nothing.apply(*given)

    def both(call: Callable) -> Callable:
        return lambda: torch.autograd.grad(call(), given, dy)

    ours, none = _shortest(norm, nothing)
    ours_both, none_both = _shortest(both(norm), both(nothing))
    forward = ours - none
    return {
        (case, "forward"): round(forward, 1),
        (case, "backward"): round(ours_both - none_both - forward, 1),
    }


def _shortest(*calls: Callable, rounds: int = 300, count: int = 10) -> list[float]:
    """Processor time of each call in microseconds, the shortest mean of a round.

    Rounds are short, so that some find the core quiet where other work shares it.
    """
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            start = time.thread_time()
            for _ in range(count):
                call()
            best[index] = min(best[index], (time.thread_time() - start) / count * 1e6)
    return best


# ---- compilations over a training ---------------------------------------------------------------


def compilations(batches: int, seed: int = 0) -> dict[str, dict[tuple, set]]:
    """The kernels that multi-scale training of Mask R-CNN R50-FPN compiles, by norm.

    Images of COCO's usual proportions, their short side 640 to 800 and their long one 1333 at most,
    are padded to a batch of two; every norm and join of the detector asks for its plan.

    Returns:
        For each norm its kernels, by all they depend on but how much they read at once.
    """
    draw = random.Random(seed)
    counts: dict[str, dict[tuple, set]] = {name: defaultdict(set) for name in ("GN", "FRN+TLU")}
    shapes = set()
    for _ in range(batches):
        height, width = (max(side) for side in zip(*(_image(draw) for _ in range(2)), strict=True))
        shapes.add((-(-height // 32) * 32, -(-width // 32) * 32))
    for height, width in shapes:
        for kind, groups, activation in (("group", 32, "ReLU"), ("rms", None, "TLU")):
            name = "GN" if kind == "group" else "FRN+TLU"
            for channels, size, act, joined in _sites(height, width):
                n = {49: 1024, 196: 256}.get(size, 2)
                case = Case(
                    name, kind, channels if groups is None else groups, activation if act else None,
                    joined, (n, channels, size), "bf16", False,
                )  # fmt: skip
                for found in launches(case).values():
                    for launch in found:
                        kernel = launch.kernel
                        # The first constant is how much is read at once.
                        key = (kernel.function.__name__, kernel.types, kernel.constants[1:])
                        counts[name][key].add(kernel)
    return counts


def _image(draw: random.Random) -> tuple[int, int]:
    """Height and width of an image as training resizes it."""
    proportion = draw.choice([3 / 4, 4 / 3, 4 / 3, 4 / 3, 3 / 2, 2 / 3, draw.uniform(0.5, 2.2)])
    short = draw.choice(range(640, 801, 32))
    long = min(1333, round(short * max(proportion, 1 / proportion)))
    short = round(long / max(proportion, 1 / proportion))
    return (short, long) if proportion > 1 else (long, short)


def _sites(height: int, width: int) -> Iterator[tuple[int, int, bool, bool]]:
    """Channels, pixels, activated, and joined, of every kind of norm in the detector."""

    def pixels(stride: int) -> int:
        return -(-height // stride) * -(-width // stride)

    yield 64, pixels(2), True, False
    for stage, stride in enumerate((4, 8, 16, 32)):
        yield 64 << stage, pixels(stride), True, False
        yield 256 << stage, pixels(stride), False, False
        yield 256 << stage, pixels(stride), True, True
        yield 256, pixels(stride), False, False
    yield 256, 49, True, False
    yield 256, 196, True, False


def check(found: Iterable[dict]) -> Iterator[dict]:
    """Pass the rows on; at the end fail if there was a fault.

    Raises:
        NormdetError: a kernel does not compile, spills, or loads fewer bytes at once than it could.
    """
    wrong = []
    for row in found:
        faults = row.pop("faults")
        where = [row[key] for key in ("target", "op", "shape", "dtype", "layout", "pass")]
        wrong += [f"{' '.join(where)}: {fault}" for fault in faults]
        yield row
    if wrong:
        listed = "\n".join(wrong[:40])
        raise NormdetError(f"{len(wrong)} faults in the kernels' machine code:\n{listed}")
