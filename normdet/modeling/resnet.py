"""ResNet whose blocks take any norm option: 18 to 152, basic, bottleneck and deformable."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import BACKBONE_REGISTRY, ResNet, build_resnet_backbone
from torch import Tensor, nn

from ..keys import norm_option, stage_options
from ..layers import freeze_batch_norm
from ..options import NormOption
from .dress import convolve_and_join, dress_conv, without_norms
from .fixup import fixup_block, fixup_stem
from .fold import fold_fixed
from .lean import lean


class _Dressed(CNNBlockBase):
    """A stock block's children under their own names, normalized as the option says."""

    activated: tuple[str, ...] = ("conv1", "conv2")

    def __init__(self, block: CNNBlockBase, option: NormOption):
        super().__init__(block.in_channels, block.out_channels, block.stride)
        for name, child in block.named_children():
            setattr(self, name, child)
            if name != "conv2_offset":
                dress_conv(self, child, option, activate=name in self.activated)

    def freeze(self) -> "CNNBlockBase":
        """Stop training the block, its norms' statistics included."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        freeze_batch_norm(self)
        return self


class Stem(_Dressed):
    """The 7x7 convolution and max pooling, from `(N, 3, H, W)` to `(N, C, H / 4, W / 4)`."""

    activated = ("conv1",)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class BasicBlock(_Dressed):
    """Two 3x3 convolutions and a shortcut; the activation after the addition has its own `tau`."""

    activated = ("conv1",)
    last = "conv2"

    def __init__(self, block: CNNBlockBase, option: NormOption):
        super().__init__(block, option)
        self.join = option.build_join(self.out_channels)
        self.entry = None  # Fixup's bias before the convolutions
        self.shortcut = getattr(self, "shortcut", None)

    def trunk(self, x: Tensor) -> Tensor:
        """The branch without its last convolution."""
        return self.conv1(x)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.trunk(x))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.entry is not None:
            x = self.entry(x)
        if self.shortcut is not None:
            shortcut = self.shortcut(x)
        if torch.jit.is_scripting():
            return self.join(self.branch(x), shortcut)
        else:
            return convolve_and_join(getattr(self, self.last), self.trunk(x), shortcut, self.join)


class BottleneckBlock(BasicBlock):
    """1x1, 3x3, 1x1 convolutions and a shortcut."""

    activated = ("conv1", "conv2")

    last = "conv3"

    def trunk(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(self.trunk(x))


class DeformBottleneckBlock(BottleneckBlock):
    """A bottleneck whose 3x3 convolution is deformable; its offsets are not normalized."""

    def __init__(self, block: CNNBlockBase, option: NormOption):
        super().__init__(block, option)
        self.modulated = block.deform_modulated

    def trunk(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        offset = self.conv2_offset(x)
        if not self.modulated:
            return self.conv2(x, offset)
        offset_x, offset_y, mask = offset.chunk(3, dim=1)
        offset = torch.cat((offset_x, offset_y), dim=1)
        return self.conv2(x, offset, mask.sigmoid())


_DRESSED = {
    "BasicBlock": BasicBlock,
    "BottleneckBlock": BottleneckBlock,
    "DeformBottleneckBlock": DeformBottleneckBlock,
}


def normalize_blocks(blocks: nn.Sequential, option: NormOption, depth: int) -> nn.Sequential:
    """A stage of detectron2's blocks, built without norms, as a stage of ours.

    Args:
        depth: of the whole network, as in its name; Fixup starts deeper networks smaller.
    """
    dressed = [_DRESSED[type(block).__name__](block, option) for block in blocks]
    if option.init:
        for block in dressed:
            fixup_block(block, option, depth)
    return nn.Sequential(*dressed)


def normalize_resnet(
    resnet: ResNet,
    option: NormOption,
    freeze_at: int = 0,
    *,
    depth: int,
    stages: Mapping[str, NormOption] | None = None,
) -> ResNet:
    """Normalize a detectron2 ResNet built without norms, in place.

    Args:
        depth: 18 to 152, even if the last stages are not built.
        freeze_at: stages to freeze, the stem first; a frozen stage trains neither its convolutions
            nor its norms, whatever they are.
        stages: options of their own for some of `stem`, `res2`, ... `res5`.
    """
    stages = stages or {}
    at_stem = stages.get("stem", option)
    resnet.stem = Stem(resnet.stem, at_stem)
    if at_stem.init:
        fixup_stem(resnet.stem, at_stem)
    for index, name in enumerate(resnet.stage_names):
        own = stages.get(name, option)
        resnet.stages[index] = normalize_blocks(getattr(resnet, name), own, depth)
        setattr(resnet, name, resnet.stages[index])
    return resnet.freeze(freeze_at)


@BACKBONE_REGISTRY.register()
def build_normdet_resnet_backbone(cfg, input_shape) -> ResNet:
    """detectron2's `build_resnet_backbone` for any norm option in `MODEL.RESNETS.NORM`.

    `MODEL.NORMDET.STEM_NORM` and `RES2_NORM` to `RES5_NORM` give a stage one of its own.
    """
    option = norm_option(cfg, "backbone")
    bare = without_norms(cfg, "MODEL.RESNETS.NORM")
    bare.MODEL.BACKBONE.FREEZE_AT = 0  # freeze after the norms are in place
    resnet = build_resnet_backbone(bare, input_shape)
    freeze_at, depth = cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.DEPTH
    normalize_resnet(resnet, option, freeze_at, depth=depth, stages=stage_options(cfg))
    fold_fixed(resnet, cfg.MODEL.NORMDET.FOLD_FIXED)
    return lean(resnet, cfg.MODEL.NORMDET.RECOMPUTE)
