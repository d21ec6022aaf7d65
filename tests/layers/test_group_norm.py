"""The learned epsilon of a group norm."""

import pytest
import torch

from normdet.errors import NormdetError
from normdet.layers import GroupNorm


def test_weights_with_a_learned_epsilon_need_it():
    state = GroupNorm(2, 4, learned_eps=True).state_dict()
    with pytest.raises(NormdetError, match="MODEL.NORMDET.GN.LEARNED_EPS always"):
        GroupNorm(2, 4).load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "eager", "cpp"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_learned_epsilon_of_a_group_norm_has_its_gradient(backend, groups):
    from normdet.ops import cpp

    if backend == "cpp" and not cpp.available():
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    norm = GroupNorm(groups, 6, activation="TLU", backend=backend, learned_eps=True).double()
    norm.eps_l.data.fill_(-0.3)
    x = torch.randn(2, 6, 4, 4, dtype=torch.double, requires_grad=True)
    y = norm(x)
    grouped = x.view(2, groups, -1)
    var, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
    expected = ((grouped - mean) / (var + 1e-5 + 0.3).sqrt()).view_as(x).relu()
    torch.testing.assert_close(y, expected)
    assert torch.autograd.gradcheck(lambda x, *p: norm(x), (x, *norm.parameters()))
