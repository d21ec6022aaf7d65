"""SwitchNorm's shares: equal at first, logged, and each one's extreme is the norm it names."""

import pytest
import torch

from normdet import layers


def test_shares_start_equal_and_are_logged():
    scalars = layers.SwitchNorm(4).scalars()
    kinds = [f"{moment}_{kind}" for moment in ("mean", "var") for kind in ("in", "ln", "bn")]
    assert scalars == pytest.approx(dict.fromkeys(kinds, 1 / 3))
    assert layers.SwitchNorm(4, dims=0).scalars().keys() == {
        "mean_ln", "mean_bn", "var_ln", "var_bn"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("index", "plain"),
    [(0, layers.InstanceNorm(4)), (1, layers.LayerNorm(4)), (2, layers.BatchNorm2d(4))],
)
def test_one_share_alone_is_that_norm(index, plain):
    norm = layers.SwitchNorm(4)
    for weight in (norm.mean_weight, norm.var_weight):
        weight.data[index] = 100.0
    torch.manual_seed(0)
    for _ in range(2):
        x = torch.randn(3, 4, 5, 5) * 2 + 1
        torch.testing.assert_close(norm(x), plain(x))
    torch.testing.assert_close(norm.eval()(x), plain.eval()(x))


def test_it_reads_its_input_in_one_pass(monkeypatch):
    from normdet.layers import moments, switch_norm

    calls = []

    def counted(x):
        calls.append(x)
        return moments.instance_moments(x)

    monkeypatch.setattr(switch_norm, "instance_moments", counted)
    monkeypatch.setattr("normdet.layers.batch_statistics.instance_moments", counted)
    layers.SwitchNorm(4)(torch.randn(2, 4, 3, 3))
    assert len(calls) == 1
