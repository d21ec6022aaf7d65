"""The kernels' machine code, compiled for GPUs that this machine lacks, and their launches."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[3]


def test_every_row_of_a_multiple_of_eight_is_read_in_sixteen_bytes():
    """This checks the plans; the table of `bench --kernels` shows the compiler's result."""
    from normdet.lab.bench import kernels

    sizes = {"bf16": 2, "fp16": 2, "fp32": 4}
    for case in kernels.cases():
        along = case.shape[1] if case.last or case.shape[2] == 1 else case.shape[2]
        if along % 8 == 0:
            for launches in kernels.launches(case).values():
                wide = [x.kernel for x in launches if x.kernel.function.__name__ != "join_slabs"]
                assert all(x.constants[0] * sizes[case.dtype] == 16 for x in wide)


def test_multi_scale_training_compiles_few_kernels():
    from normdet.lab.bench import kernels

    for name, found in kernels.compilations(1000).items():
        assert max(map(len, found.values())) <= 4, name
        assert sum(map(len, found.values())) < 50, name


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_machine_code_has_no_spill_and_no_narrow_read(target):
    from normdet.lab.bench import kernels

    rows = list(kernels.check(kernels.rows([target], short=True, host=False)))
    assert len(rows) == 2 * len(list(kernels.cases(short=True)))
    assert all(row["registers"] > 0 and row["instructions"] > 0 for row in rows)


@pytest.mark.slow
def test_launches_over_a_stand_in_for_the_driver():
    """In a separate process, which then has a driver without a GPU."""
    code = """
import torch
from normdet import ops
from normdet.lab.bench.standin import standing_in
torch.ones(1, requires_grad=True).sum().backward()
with standing_in() as driver:
    for shape, forward, backward in (((2, 64, 7, 7), 1, 1), ((2, 64, 40, 40), 2, 2)):
        x = torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
        for repeat in range(2):
            start = driver.normdet_launches()
            y = ops.group_norm_act(x, 32, None, None, eps=1e-5, activation="ReLU",
                                   backend="triton")
            middle = driver.normdet_launches()
            y.sum().backward()
            assert middle - start == forward
            assert driver.normdet_launches() - middle == backward
    try:
        ops.group_norm_act(x.double(), 32, None, None, eps=1e-5, backend="triton")
        raise SystemExit("fp64 was taken")
    except Exception as error:
        assert "fp16, bf16 and fp32" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
