"""What the tests of the operators share."""

import pytest
import torch

from normdet.ops import cpp


@pytest.fixture(params=["eager", "cpp"])
def backend(request) -> str:
    if request.param == "cpp" and not cpp.available():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.fixture
def empty_is_nan(monkeypatch):
    """Fresh buffers hold NaN, so that an element left unwritten shows."""
    plain, like = torch.empty, torch.empty_like
    new = torch.Tensor.new_empty

    def fill(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(plain(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(like(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: fill(new(*a, **k)))
