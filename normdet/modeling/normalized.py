"""A network's normalized layers: each norm, the layer before it, and that layer's weights."""

import torch
from torch import Tensor, nn


def layer_before(name: str, modules: dict[str, nn.Module]) -> str | None:
    """The name of the layer before a norm; None if there is none.

    Args:
        name: of the norm.
        modules: `dict(model.named_modules())`.
    """
    parent, _, last = name.rpartition(".")
    if last == "norm":
        return parent
    named = f"{parent}.{last.replace('_norm', '')}".lstrip(".")
    if named != name and named in modules:
        return named
    before = None
    for child, module in modules[parent].named_children():
        if child == last:
            return before
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            before = f"{parent}.{child}".lstrip(".")
        elif not isinstance(module, nn.Identity):
            before = None
    return None


@torch.no_grad()
def put_weight(layer: nn.Module, weight: Tensor) -> None:
    """Set a layer's learned weight, and refit the state of its weight method."""
    layer.load_state_dict({"weight": weight}, strict=False)
