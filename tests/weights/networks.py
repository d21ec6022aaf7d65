"""Other libraries' networks, with norms as after a training."""

import torch
import torch.nn.functional as F
from torch import nn


def trained(network: nn.Module) -> nn.Module:
    """The network with norms that no start value resembles."""
    for name, value in network.state_dict().items():
        if value.dim() == 1 and value.is_floating_point():
            centre = 0.0 if "bias" in name or "mean" in name else 0.8
            value.copy_(torch.rand_like(value) * 0.4 + centre)
    return network.eval()


class WSConv2d(nn.Conv2d):
    """As the authors of weight standardization define it."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        std = weight.view(len(weight), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        return F.conv2d(x, weight / std, None, self.stride, self.padding, 1, self.groups)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def stride_in_1x1(network: nn.Module) -> nn.Module:
    """A torchvision ResNet turned into MSRA's."""
    for layer in (network.layer2, network.layer3, network.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    return network


def standardize(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = WSConv2d
    return network
