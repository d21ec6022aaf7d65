"""Adapt the weights of a colour network to a network with one grey channel."""

from collections.abc import Mapping

import torch


def sum_stem_channels(
    state: Mapping[str, torch.Tensor], weights: dict[str, torch.Tensor]
) -> list[str]:
    """Sum the input channels of a colour stem if the model's has one channel; changes `weights`.

    A grey image is a colour image of three equal channels. So the sum keeps the network's function,
    provided that `PIXEL_MEAN` and `PIXEL_STD` treat the one channel as they treated the three.

    Args:
        state: the model's tensors.
        weights: the file's, under whatever names.

    Returns:
        A sentence if something was summed.
    """
    grey = {
        tuple(value.shape) for value in state.values() if value.ndim == 4 and value.shape[1] == 1
    }
    summed = []
    for name, value in weights.items():
        if value.ndim == 4 and value.shape[1] == 3:
            shape = (value.shape[0], 1, *value.shape[2:])
            if shape in grey:
                weights[name] = value.sum(1, keepdim=True)
                summed.append(name)
    return [
        f"{name} is summed over its three colours for the model's one channel: PIXEL_MEAN and "
        "PIXEL_STD should do to it what those of the weights do to the three"
        for name in summed
    ]
