"""Backbones of timm for detectron2's detectors, with any norm: `MODEL.NORMDET.TIMM`."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..errors import NormdetError
from ..keys import norm_option
from ..surgery import normalize
from .fpn import normalize_fpn
from .lean import lean

_LEVELS = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


class TimmBackbone(Backbone):
    """A network of timm as a detectron2 backbone: its maps of strides 4 to 32 are `res2` to `res5`.

    Args:
        name: as `timm.create_model` takes it.
        in_channels: of its images.
        out_features: the maps to return.

    Raises:
        NormdetError: timm is not installed, or has no such network with such maps.
    """

    def __init__(self, name: str, in_channels: int, out_features: list[str]):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise NormdetError("MODEL.NORMDET.TIMM needs timm: pip install timm") from None
        try:
            self.net = timm.create_model(name, features_only=True, in_chans=in_channels)
        except Exception as error:  # timm raises errors of many kinds
            raise NormdetError(f"MODEL.NORMDET.TIMM {name!r}: {error}") from None
        info = self.net.feature_info
        levels = [_LEVELS.get(stride, "") for stride in info.reduction()]
        if missing := [feature for feature in out_features if feature not in levels]:
            raise NormdetError(
                f"MODEL.NORMDET.TIMM {name!r} has no map {', '.join(missing)}: it has "
                f"{', '.join(filter(None, levels))}"
            )
        self._levels = levels
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(levels, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(levels, info.reduction(), strict=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the maps of `(N, C, H, W)`, by name."""
        maps = dict(zip(self._levels, self.net(x), strict=True))
        return {name: maps[name] for name in self._out_features}

    def freeze(self, freeze_at: int) -> None:
        """Stop training the stem and the first stages: 1 is the stem, 2 also `res2`."""
        stage = 1
        for name, child in self.net.named_children():
            ends = self.net.return_layers.get(name) if hasattr(self.net, "return_layers") else None
            level = None if ends is None else self._levels[int(ends)]
            stage = int(level[-1]) if level else stage
            if stage <= freeze_at:
                for parameter in child.parameters():
                    parameter.requires_grad = False

    def load(self, file: str | Path) -> None:
        """Load timm's own weights of this network, without its classifier.

        Raises:
            NormdetError: the file cannot be read, or is of another network.
        """
        state, mine = _read(Path(file)), self.net.state_dict()
        # Of some networks timm joins the first two words of a name: stages.0 is stages_0 here.
        joined = {name: name.replace(".", "_", 1) for name in state}
        state = {joined[k] if joined[k] in mine else k: v for k, v in state.items()}
        fits = {k: v for k, v in state.items() if k in mine and v.shape == mine[k].shape}
        missing = [k for k in mine if k not in fits and not k.endswith("num_batches_tracked")]
        if missing:
            raise NormdetError(
                f"MODEL.NORMDET.TIMM_WEIGHTS {file} lacks {len(missing)} of {len(mine)} tensors, "
                f"{missing[0]} for one: it is of another network"
            )
        self.net.load_state_dict(fits, strict=False)

    @property
    def pixels(self) -> tuple[list[float], list[float]]:
        """The mean and deviation of 8-bit RGB under which its published weights were trained."""
        known = self.net.pretrained_cfg if hasattr(self.net, "pretrained_cfg") else {}
        mean, std = known.get("mean", (0.5,) * 3), known.get("std", (0.5,) * 3)
        return [value * 255 for value in mean], [value * 255 for value in std]


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
        return state.get("state_dict", state)
    except Exception as error:  # the disk, zip and pickle raise errors of many kinds
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NormdetError(f"MODEL.NORMDET.TIMM_WEIGHTS {file}: {said}") from None


def _check_pixels(cfg: CfgNode, net: TimmBackbone) -> None:
    mean, std = net.pixels
    given = [list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)]
    close = all(
        len(a) == len(b) and all(abs(x - y) < 0.5 for x, y in zip(a, b, strict=True))
        for a, b in zip(given, (mean, std), strict=True)
    )
    if cfg.INPUT.FORMAT != "RGB" or not close:
        shown = [[round(value, 3) for value in values] for values in (mean, std)]
        raise NormdetError(
            f"the weights of {cfg.MODEL.NORMDET.TIMM} were trained on other pixels: set "
            f"INPUT.FORMAT RGB MODEL.PIXEL_MEAN {shown[0]} MODEL.PIXEL_STD {shown[1]}"
        )


def _bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    settings = cfg.MODEL.NORMDET
    if not settings.TIMM:
        raise NormdetError("MODEL.NORMDET.TIMM names no network of timm, such as resnet50")
    net = TimmBackbone(settings.TIMM, input_shape.channels, cfg.MODEL.RESNETS.OUT_FEATURES)
    if settings.TIMM_WEIGHTS:
        _check_pixels(cfg, net)
        net.load(settings.TIMM_WEIGHTS)
    net.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    option = norm_option(cfg, "backbone")
    if option:
        normalize(net.net, option)
    return net


def _fpn(cfg: CfgNode, input_shape: ShapeSpec, top: nn.Module | None = None) -> FPN:
    net, in_features = _bottom_up(cfg, input_shape), cfg.MODEL.FPN.IN_FEATURES
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if top is None:
        top = LastLevelMaxPool()
    fpn = FPN(net, in_features, channels, "", top_block=top, fuse_type=cfg.MODEL.FPN.FUSE_TYPE)
    normalize_fpn(fpn, norm_option(cfg, "fpn"), norm_option(cfg, "fpn_top"))
    return lean(fpn, cfg.MODEL.NORMDET.RECOMPUTE)


@BACKBONE_REGISTRY.register()
def build_normdet_timm_fpn_backbone(cfg, input_shape) -> FPN:
    """FPN on the network of timm that `MODEL.NORMDET.TIMM` names, for Mask R-CNN and its kin."""
    return _fpn(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_normdet_retinanet_timm_fpn_backbone(cfg, input_shape) -> FPN:
    """The same with RetinaNet's p6 and p7 on top, from p5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _fpn(cfg, input_shape, LastLevelP6P7(channels, channels, "p5"))
