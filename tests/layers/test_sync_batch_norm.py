"""Every synchronized norm on two processes equals itself on one process with the whole batch.

Whatever the shares; SyncBN is BN.
"""

from itertools import product

import pytest
import torch

from normdet import layers
from normdet.options import METHODS, parse
from tests.workers import run_workers

SHARES = {
    "equal": [(2, 4, 5, 5), (2, 4, 5, 5)],
    "unequal": [(3, 4, 5, 5), (1, 4, 5, 5)],
    "other sizes": [(2, 4, 5, 5), (1, 4, 3, 7)],
    "empty": [(2, 4, 5, 5), (0, 4, 5, 5)],
    "fully connected": [(3, 4), (2, 4)],
    "one element each": [(1, 4), (1, 4)],
    "volumes": [(1, 4, 2, 3, 4), (2, 4, 2, 3, 4)],
}


SYNCHRONIZED = [name for name, method in METHODS.items() if "SYNC" in method.params]
TEXTS = ["SyncBN", "SyncBN+TLU", *SYNCHRONIZED]
# For these a batch is more than its elements.
PER_EXAMPLE_TOO = ("BIN", "SwitchNorm", "EvalNorm", "EvoNormB0", "AttentiveBN")


def _meaningful(text: str, shares: str) -> bool:
    if text in PER_EXAMPLE_TOO and shares == "other sizes":
        return False
    return len(SHARES[shares][0]) > 2 or not METHODS[text.split("+")[0]].needs_space


CASES = [case for case in product(TEXTS, SHARES) if _meaningful(*case)]


def _build(text: str, dims: int, dtype: torch.dtype, sync: bool = True) -> torch.nn.Module:
    params = {name: {"SYNC": sync, "WARMUP": 0, "OPEN": 1} for name in SYNCHRONIZED}
    torch.manual_seed(0)
    norm = parse(text, params).build_norm(4, activate=True, dims=dims).to(dtype)
    layers.after_step(norm)  # opens the limits of BRN
    for k, parameter in enumerate(norm.parameters()):
        steps = torch.arange(1, parameter.numel() + 1, dtype=dtype).view_as(parameter)
        parameter.data += 0.1 * steps * (k + 1)
    return norm


def _batches(shapes, dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) * 2 + 1 for shape in shapes]


def _train(norm: torch.nn.Module, x: torch.Tensor) -> dict:
    """One step's worth of everything: outputs, gradients, learned statistics."""
    x = x.clone().requires_grad_()
    y = norm(x)
    y.square().sum().backward()
    grads = {f"grad {name}": p.grad for name, p in norm.named_parameters()}
    return {"y": y.detach(), "x.grad": x.grad, **grads, **norm.state_dict()}


def _worker(rank: int) -> dict:
    ret = {}
    for text, name in CASES:
        norm = _build(text, len(SHARES[name][0]) - 2, torch.float64)
        ret[text, name] = _train(norm, _batches(SHARES[name], torch.float64)[rank])
    # Values whose squares leave float16's range.
    x = (_batches([(4, 4, 9, 9)], torch.float32)[0].sign() * 300).half()
    ret["half"] = parse("SyncBN").build_norm(4)(x[rank * 2 :][:2]).detach()
    return ret


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_workers(_worker, 2)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """`(N, C, *S)` as `(N * S, C)`: maps of any sizes in one batch."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(("text", "shares"), CASES)
def test_two_workers_equal_one(text, shares, results):
    parts = [result[text, shares] for result in results]
    whole, dims = _batches(SHARES[shares], torch.float64), len(SHARES[shares][0]) - 2
    if shares == "other sizes":
        whole, dims = [_flat(x) for x in whole], 0
    alone = _build(text.replace("SyncBN", "BN"), dims, torch.float64, sync=False)
    want = _train(alone, torch.cat(whole))
    for key, value in want.items():
        if key in ("y", "x.grad"):
            value = _flat(value)
            got = torch.cat([_flat(part[key]) for part in parts])
        elif key.startswith("grad "):
            got = parts[0][key] + parts[1][key]
        else:
            got = parts[0][key]
            assert torch.equal(got, parts[1][key]), f"workers disagree on {key}"
        torch.testing.assert_close(got, value, msg=lambda m: f"{key}: {m}")  # noqa: B023


@pytest.mark.slow
def test_half_precision_shares_are_summed_wide(results):
    got = torch.cat([result["half"] for result in results])
    x = _batches([(4, 4, 9, 9)], torch.float32)[0].sign() * 300
    torch.testing.assert_close(got.float(), parse("BN").build_norm(4)(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("text", SYNCHRONIZED)
def test_without_workers_it_is_the_plain_norm(text):
    (x,) = _batches([(3, 4, 5, 5)], torch.float32)
    ours, plain = (_train(_build(text, 2, x.dtype, sync), x) for sync in (True, False))
    assert all(torch.equal(ours[key], value) for key, value in plain.items())


def test_without_workers_it_is_batch_norm():
    (x,) = _batches([(3, 4, 5, 5)], torch.float32)
    ours, plain = _train(_build("SyncBN", 2, x.dtype), x), _train(_build("BN", 2, x.dtype), x)
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value)
