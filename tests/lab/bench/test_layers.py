"""Every operation beside its peers, which compute the same."""

import pytest
import torch

from normdet.lab.bench import layers


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_providers_of_an_operation_compute_the_same(compiled):
    other_layers = ("nn.BatchNorm2d", "nn.GroupNorm+ReLU", "FrozenBN+ReLU")
    for shape, operations in (
        ((2, 32, 5, 7), layers.providers),
        ((32, 16, 3, 3), layers.weight_providers),
    ):
        case = layers.Input(shape, torch.float32, False, "cpu")
        x = case.tensor()
        for op, group in operations(case, compiled):
            skipped = other_layers[: 3 if "FRN" in op else 1]
            # The dialects of WS differ by their epsilon, and by n against n - 1.
            close = {"rtol": 1e-2 if op == "WS" else 1e-4, "atol": 1e-4}
            expected = group[0].call(x)
            for provider in group[1:]:
                if not provider.name.startswith(skipped):
                    torch.testing.assert_close(provider.call(x), expected, **close)


@pytest.mark.slow
def test_weight_standardization_has_rows():
    case = layers.Input((32, 16, 3, 3), torch.float32, False, "cpu")
    rows = list(layers.rows(case, 1e6, 0.01, False, layers.weight_providers))
    assert {row["provider"] for row in rows} >= {"normdet auto", "normdet reference", "timm"}
    assert {row["mode"] for row in rows} == {"forward", "backward", "both"}
