"""Whether this torch can record a whole detector."""

import inspect

import pytest
import torch


def need_recorder() -> None:
    """Skip where torch.export records no numbers that depend on values."""
    late = "prefer_deferred_runtime_asserts_over_guards"
    if late not in inspect.signature(torch.export.export).parameters:
        pytest.skip("this torch cannot record a whole detector")
