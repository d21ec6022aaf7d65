"""Networks of other libraries, with norms like those of trained ones."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from normdet.config import load_config
from normdet.keys import put
from normdet.weights import required_config


def trained(network: nn.Module) -> nn.Module:
    """The network with norms that are far from start values."""
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


CLASSES = 5


WIDTH = 64


class ConvModule(nn.Module):
    """mmcv's convolution and norm, the convolution standardized if asked."""

    def __init__(self, inputs, size, conv):
        super().__init__()
        self.conv = conv(inputs, WIDTH, size, padding=size // 2, bias=False)
        self.gn = group_norm(WIDTH)

    def forward(self, x):
        return self.gn(self.conv(x))


class MMDetection(nn.Module):
    """mmdetection's Mask R-CNN with GN in backbone, FPN and heads, by its names."""

    def __init__(self, conv):
        super().__init__()
        self.backbone = torchvision.models.resnet18(norm_layer=group_norm)
        del self.backbone.fc
        if conv is WSConv2d:
            standardize(self.backbone)
        self.neck, self.rpn_head, self.roi_head = nn.Module(), nn.Module(), nn.Module()
        self.neck.lateral_convs = nn.ModuleList(ConvModule(c, 1, conv) for c in (64, 128, 256, 512))
        self.neck.fpn_convs = nn.ModuleList(ConvModule(WIDTH, 3, conv) for _ in range(4))
        self.rpn_head.rpn_conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.rpn_head.rpn_cls = nn.Conv2d(WIDTH, 3, 1)
        self.rpn_head.rpn_reg = nn.Conv2d(WIDTH, 12, 1)
        box = self.roi_head.bbox_head = nn.Module()
        box.shared_convs = nn.ModuleList(ConvModule(WIDTH, 3, conv) for _ in range(4))
        box.shared_fcs = nn.ModuleList([nn.Linear(WIDTH * 49, WIDTH)])
        box.fc_cls, box.fc_reg = nn.Linear(WIDTH, CLASSES + 1), nn.Linear(WIDTH, 4 * CLASSES)
        mask = self.roi_head.mask_head = nn.Module()
        mask.convs = nn.ModuleList(ConvModule(WIDTH, 3, conv) for _ in range(4))
        mask.upsample = nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2)
        mask.conv_logits = nn.Conv2d(WIDTH, CLASSES, 1)

    def pyramid(self, x):
        net = self.backbone
        x, maps = net.maxpool(net.relu(net.bn1(net.conv1(x)))), []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            maps.append(x := layer(x))
        laterals = [conv(x) for conv, x in zip(self.neck.lateral_convs, maps, strict=True)]
        for i in (3, 2, 1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], scale_factor=2)
        maps = [conv(x) for conv, x in zip(self.neck.fpn_convs, laterals, strict=True)]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]

    def proposals(self, maps):
        hidden = [F.relu(self.rpn_head.rpn_conv(x)) for x in maps]
        return [self.rpn_head.rpn_cls(x) for x in hidden], [
            self.rpn_head.rpn_reg(x) for x in hidden
        ]

    def boxes(self, x):
        head = self.roi_head.bbox_head
        for conv in head.shared_convs:
            x = F.relu(conv(x))
        x = F.relu(head.shared_fcs[0](x.flatten(1)))
        return head.fc_cls(x), head.fc_reg(x)

    def masks(self, x):
        head = self.roi_head.mask_head
        for conv in head.convs:
            x = F.relu(conv(x))
        return head.conv_logits(F.relu(head.upsample(x)))

    def published(self):
        """The state dict, its backbone's norms called as mmcv calls them."""
        return {
            key.replace(".bn", ".gn") if key.startswith("backbone.") else key: value
            for key, value in self.state_dict().items()
        }


def meta(ws: bool, rgb: bool) -> dict:
    """The metadata that mmdetection stores in a file: its whole config as text."""
    conv = "conv_cfg=dict(type='ConvWS')," if ws else ""
    mean, std = (
        ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]) if rgb
        else ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
    )  # fmt: skip
    text = f"""
img_norm_cfg = dict(mean={mean}, std={std}, to_rgb={rgb})
model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=18, {conv} style='pytorch'),
    neck=dict(type='FPN', {conv} num_outs=5),
    rpn_head=dict(
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0]),
        bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(
        bbox_head=dict({conv} bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])),
        mask_head=dict({conv} num_convs=4)))
train_pipeline = [dict(type='Load' + 'Image')]
"""
    return {"mmdet_version": "2.10.0", "config": text, "epoch": 24}


def tolerance(value):
    return {"rtol": 1e-4, "atol": 1e-4 * value.abs().max().item()}


def adopted(imported):
    """A config with the keys that the file needs, and no others."""
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    for key, value in required_config(imported.facts, imported.model).items():
        put(cfg, key, value)
    return cfg
