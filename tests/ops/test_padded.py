"""Every form of a norm on padded batches against the reference on each image alone."""

import pytest
import torch
from torch import Tensor

from normdet import ops
from normdet.ops import cpp
from normdet.ops.padded import Extents, padded, plain

BACKENDS = [
    "eager",
    pytest.param("cpp", marks=pytest.mark.skipif(not cpp.available(), reason="no C++ compiler")),
]
# (C, H, W) and the images' sizes: small groups, rows longer than a block, as wide as the map.
BATCHES = {
    "small": ((8, 6, 7), [(6, 3), (2, 7), (1, 1)]),
    "wide": ((4, 3, 1100), [(3, 1100), (2, 1050), (0, 4)]),
    "usual": ((64, 40, 52), [(40, 33), (31, 52)]),
    "one row": ((6, 1, 9), [(1, 9), (1, 4)]),
}
NORMS = {
    "frn": lambda x, p, **more: ops.frn_tlu(x, *p, eps=1e-3, **more),
    "rms of groups": lambda x, p, **more: ops.frn_tlu(x, *p, eps=1e-3, num_groups=2, **more),
    "group": lambda x, p, **more: ops.group_norm_act(x, 2, *p, eps=1e-3, **more),
    "layer": lambda x, p, **more: ops.group_norm_act(x, 1, *p, eps=1e-3, **more),
    "instance": lambda x, p, **more: ops.group_norm_act(x, x.shape[1], *p, eps=1e-3, **more),
}


def made(batch: str, dtype: torch.dtype, last: bool, activation: str | None, joined: bool):
    (channels, *size), extents = BATCHES[batch]
    torch.manual_seed(0)
    tensors = [torch.randn(len(extents), channels, *size).to(dtype) * 2 + 1 for _ in "xr"]
    if last:
        tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    parameters = [torch.randn(channels) * scale for scale in (1, 0.5, 0.3)]
    if activation != "TLU":
        parameters[2] = None
    return tensors[: 1 + joined], parameters, Extents(extents, tuple(size))


def results(norm, tensors, parameters, extents, **options) -> list[Tensor]:
    """Output and gradients; outside the images the gradients' inputs are not zero."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in (*tensors, *parameters)]
    x, *residual = (padded(t, extents) for t in leaves[: len(tensors)])
    if residual:
        options["residual"] = residual[0]
    y = norm(x, leaves[len(tensors) :], **options)
    assert y.clean
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (plain(y) * weights.to(y.dtype)).sum().backward()
    return [plain(y).detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("activation", "joined"), [(None, False), ("ReLU", True), ("TLU", False), ("TLU", True)]
)
def test_every_form_is_the_reference_on_each_image(norm, batch, last, backend, activation, joined):
    given = made(batch, torch.float32, last, activation, joined)
    options = {"activation": activation}
    want = results(
        NORMS[norm], [t.double() for t in given[0]],
        [None if p is None else p.double() for p in given[1]], given[2],
        backend="reference", **options,
    )  # fmt: skip
    got = results(NORMS[norm], *given, backend=backend, **options)
    for mine, exact in zip(got, want, strict=True):
        scale = exact.abs().max().clamp(min=1)
        torch.testing.assert_close(mine.double() / scale, exact / scale, rtol=1e-5, atol=2e-5)
        if mine.dim() == 4:
            sizes = given[2].at(mine.shape[2:])
            outside = [part[:, h:].any() or part[:, :h, w:].any() for part, (h, w) in
                       zip(mine, sizes, strict=True)]  # fmt: skip
            assert not any(outside)
    if last and BATCHES[batch][0][1] > 1:
        assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_wide_statistics(backend, dtype):
    given = made("usual", dtype, False, "ReLU", False)
    want = results(
        NORMS["group"], [t.float() for t in given[0]], *given[1:], backend="reference",
        activation="ReLU",
    )  # fmt: skip
    got = results(NORMS["group"], *given, backend=backend, activation="ReLU")
    assert got[0].dtype == dtype
    torch.testing.assert_close(got[0].float(), want[0], rtol=1e-2, atol=1e-2)


def test_a_learned_epsilon_has_its_gradient():
    (x,), parameters, extents = made("usual", torch.float64, False, None, False)
    grads = []
    for backend in ("reference", "eager", "auto"):
        eps = torch.full((1,), 0.1, dtype=torch.float64, requires_grad=True)
        y = ops.frn_tlu(padded(x, extents), *parameters, eps=eps, backend=backend)
        plain(y).square().sum().backward()
        grads.append(eps.grad)
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    (x,), parameters, extents = made("small", torch.float64, False, None, False)
    parameters = [p.double() for p in parameters[:2]]

    def norm(x, *parameters):
        call = NORMS["group"](padded(x, extents), [*parameters, None], backend=backend)
        return plain(call)

    inputs = [t.requires_grad_() for t in (x, *parameters)]
    assert torch.autograd.gradcheck(norm, inputs)
