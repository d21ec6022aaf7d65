"""A detector's backbone with a linear classifier behind it, to train it on labelled images."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn
from torchvision.transforms import v2

from .resnet import BasicBlock


class _Backbone(nn.Module):
    """The network under the name that it has below a detector's FPN."""

    def __init__(self, bottom_up: nn.Module):
        super().__init__()
        self.bottom_up = bottom_up

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.bottom_up(x)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.bottom_up.output_shape()


@META_ARCH_REGISTRY.register()
class NormdetClassifier(nn.Module):
    """`classifier(mean_S(backbone(x)))`, with the inputs and outputs of detectron2's detectors.

    In training it maps examples with an `image` `(C, H, W)`, all of one size, and a `label` to
    `{"loss_cls": cross entropy}`; in test mode to a list of `{"scores": (classes,)}`.
    `cfg.PRETRAIN` has classes, label smoothing and mixup. Its backbone's tensors are named as in a
    detector with FPN.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        settings = cfg.PRETRAIN
        self.backbone = _Backbone(build_backbone(cfg))
        ((_, shape),) = self.backbone.output_shape().items()
        self.classifier = nn.Linear(shape.channels, settings.NUM_CLASSES)
        nn.init.normal_(self.classifier.weight, std=0.01)  # as detectron2's own ResNet has it
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD), persistent=False)
        self._smoothing = settings.LABEL_SMOOTHING
        self._mix = None
        if settings.MIXUP:
            self._mix = v2.MixUp(alpha=settings.MIXUP, num_classes=settings.NUM_CLASSES)
        if settings.ZERO_LAST_GAMMA:
            start_as_identity(self)
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        device = self.pixel_mean.device
        images = torch.stack([example["image"].to(device) for example in batch]).float()
        images = (images - self.pixel_mean.view(-1, 1, 1)) / self.pixel_std.view(-1, 1, 1)
        if not self.training:
            return [{"scores": scores} for scores in self._scores(images)]
        labels = torch.tensor([example["label"] for example in batch], device=device)
        if self._mix:
            images, labels = self._mix(images, labels)
        loss = F.cross_entropy(self._scores(images), labels, label_smoothing=self._smoothing)
        return {"loss_cls": loss}

    def _scores(self, images: Tensor) -> Tensor:
        (features,) = self.backbone(images).values()
        return self.classifier(features.mean((2, 3)))


@torch.no_grad()
def start_as_identity(model: nn.Module) -> None:
    """Set the last gamma of every residual branch to 0 (1706.02677, section 5.1).

    Norms without a trained gamma stay as they are.
    """
    for block in model.modules():
        if isinstance(block, BasicBlock):
            gamma = getattr(getattr(getattr(block, block.last), "norm", None), "weight", None)
            if isinstance(gamma, nn.Parameter):
                gamma.zero_()
