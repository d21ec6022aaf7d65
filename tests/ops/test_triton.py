"""The Triton kernels: their arithmetic under the interpreter, and on CUDA where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normdet import ops
from tests.ops import cases


@pytest.mark.slow
def test_arithmetic_under_the_interpreter():
    """In a process of its own: Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(here / "interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.slow
def test_importing_the_operators_imports_no_triton():
    code = "import sys, normdet.ops; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DETECTOR = [
    (2, 64, 400, 672),  # the stem: rows longer than a program holds
    (2, 256, 200, 336),
    (2, 1024, 50, 84),
    (512, 256, 14, 14),  # mask head
    (1024, 256, 7, 7),  # box head
    (3, 5, 37, 41),
    (0, 256, 7, 7),
    (8, 1024),
]


@CUDA
@pytest.mark.gpu
@pytest.mark.parametrize("shape", DETECTOR, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("call", [cases.frn, cases.frozen, cases.join, None])
def test_cuda_errs_at_most_twice_as_much_as_plain_torch(call, dtype, last, shape):
    if last and len(shape) < 4:
        pytest.skip("channels last needs two dimensions of space")
    call = cases.group_norm(1 if shape[1] % 32 else 32, "TLU") if call is None else call("TLU")
    x, *rest = (t.cuda() for t in cases.inputs(shape, dtype))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    dy = torch.randn(shape, device="cuda")
    cases.assert_as_good(call, [x, *rest], "triton", dy)


@CUDA
@pytest.mark.gpu
def test_cuda_offsets_past_32_bits():
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GB of device memory")
    x = torch.randn(3, 8, 9500, 9500, device="cuda", dtype=torch.bfloat16).requires_grad_()
    assert x.numel() > 2**31
    y = ops.frn_tlu(x, None, None, eps=1e-6, backend="triton")
    y.backward(torch.ones_like(y))
    last = x.detach()[-1:, -1:]
    expected = ops.frn_tlu(last.float(), None, None, eps=1e-6, backend="reference")
    torch.testing.assert_close(y[-1:, -1:].float(), expected, rtol=2e-2, atol=2e-2)
    assert x.grad[-1, -1, -1].isfinite().all()


@CUDA
@pytest.mark.gpu
def test_cuda_no_compilation_for_new_sizes():
    from normdet.ops.triton_launch import compiled

    weight = torch.ones(64, device="cuda")
    counts = []
    for height in range(40, 72):
        x = torch.randn(2, 64, height, 50, device="cuda")
        ops.frn_tlu(x, weight, None, eps=1e-6, backend="triton")
        counts.append(compiled.cache_info().currsize)
    assert counts[-1] - counts[0] <= 2 * 3  # two kernels, read by 1, 2 and 4 elements


@CUDA
@pytest.mark.gpu
def test_cuda_joined_and_wider():
    shape = (2, 64, 50, 84)
    residual = torch.randn(shape, device="cuda")
    dy = torch.randn(shape, device="cuda")
    for dtype in (torch.float32, torch.bfloat16):
        for call in (cases.frn("TLU"), cases.group_norm(32, "TLU"), cases.frozen("TLU")):
            tensors = [t.cuda() for t in cases.inputs(shape, dtype)]
            cases.assert_as_good(cases.joined(call), [*tensors, residual.to(dtype)], "triton", dy)
    x, weight, bias, _ = (t.cuda() for t in cases.inputs(shape, torch.bfloat16))
    options = {"eps": 1e-5, "dtype": torch.float32}
    y = ops.group_norm_act(x, 32, weight, bias, backend="triton", **options)
    z = ops.group_norm_act(x, 32, weight, bias, backend="reference", **options)
    torch.testing.assert_close(y, z)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.gpu
def test_cuda_on_a_device_that_is_not_the_current_one():
    x = torch.randn(2, 64, 50, 84, device="cuda:1")
    with torch.cuda.device(0):
        y = ops.frn_tlu(x, None, None, eps=1e-6, backend="triton")
    torch.testing.assert_close(y, ops.frn_tlu(x, None, None, eps=1e-6, backend="reference"))


@CUDA
@pytest.mark.gpu
def test_cuda_gradients_never_vary():
    x, *rest = (t.cuda() for t in cases.inputs((2, 64, 200, 200), torch.float32))
    dy = torch.randn_like(x)
    first, second = (cases.run(cases.frn("TLU"), [x, *rest], "triton", dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_broken_triton_is_told_of_once_and_plain_torch_serves(monkeypatch, caplog):
    pytest.importorskip("triton")
    from normdet.ops import library, triton_backend

    def broken(*args):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_backend, "point_forward", broken)
    monkeypatch.setattr(torch, "ones", lambda *a, device=None, **k: torch.zeros(a).add(1))
    triton_backend.works.cache_clear()
    try:
        assert not triton_backend.works(0) and not triton_backend.works(0)
        assert caplog.text.count("Failed to find C compiler") == 1

        class Fake:
            dtype = torch.float16
            device = torch.device("cuda", 0)

            def get_device(self):
                return 0

        assert library.resolve("auto", Fake()) is library.eager
    finally:
        triton_backend.works.cache_clear()
