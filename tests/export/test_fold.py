"""Parts that only training needs are folded away, and the function stays."""

import pytest
import torch
import torchvision
from torch import nn

from normdet import normalize
from normdet.export import deployable
from normdet.layers import NormLayer, Reparametrized
from tests.surgery.networks import spread_statistics


def network(option: str) -> nn.Module:
    torch.manual_seed(0)
    model = normalize(torchvision.models.resnet18(num_classes=4), option).eval()
    return spread_statistics(model).double()


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["BN", "FrozenBN", "SyncBN", "BN+TLU", "BN+WS", "GN+WS", "FRN+TLU+AWS", "GN+WN",
               "GN+SpectralNorm", "BRN+TLU", "MABN"],
)  # fmt: skip
def test_the_function_stays(option):
    model = network(option)
    for norm in model.modules():
        if isinstance(norm, NormLayer) and norm.tau is not None:
            nn.init.uniform_(norm.tau, -0.5, 0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = deployable(model)
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-8, atol=1e-8)
    kinds = [type(m).__name__ for m in folded.modules()]
    assert not any(isinstance(m, Reparametrized) for m in folded.modules())
    norms = [kind for kind in kinds if "Norm" in kind]
    assert bool(norms) == (not option.startswith(("BN", "Frozen", "Sync", "BRN", "MABN"))), norms
    for name, value in model.state_dict().items():  # the model itself is left alone
        assert torch.equal(value, before[name])


def test_norms_alone_can_stay():
    folded = deployable(network("GN+WS"), norms=False)
    plain = normalize(torchvision.models.resnet18(num_classes=4), "GN")
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_a_convolution_of_detectron2_keeps_its_norm_and_activation():
    from normdet.options import parse
    from normdet.surgery.sites import Finder

    conv = parse("BN+WN").build_weight(nn.Conv2d(3, 4, 3))
    conv.norm, conv.activation = parse("BN+TLU").build_norm(4, activate=True), None
    model = spread_statistics(nn.Sequential(conv)).eval()
    assert len(Finder(model).sites) == 1
    folded = deployable(model)
    x = torch.rand(1, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))
    assert folded[0].norm is None and type(folded[0].activation).__name__ == "TLU"
