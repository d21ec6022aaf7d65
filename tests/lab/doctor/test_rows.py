"""The distance of a layer's inputs from its statistics."""

import pytest
import torch

from normdet.lab.doctor.rows import wasserstein
from normdet.lab.doctor.traces import Moments


def test_a_channel_that_never_varied_is_judged_by_what_its_layer_divides_by():
    found = Moments(10, torch.tensor([0.01]).double(), torch.zeros(1).double())
    zero = torch.zeros(1).double()
    assert wasserstein(found, zero, zero, 1e-4).item() == pytest.approx(1)
