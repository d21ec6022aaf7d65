"""How a backbone with any norm is run: the rows and columns of the documentation's table."""

from collections.abc import Callable

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from normdet.config import load_config

# A method of each kind, and the combinations that train on small batches.
NORMS = ("FrozenBN", "AffineBN", "BN", "SyncBN", "GN", "GN+WS", "LN", "IN", "FRN+TLU", "BRN", "BIN",
         "SwitchNorm", "EvalNorm", "InPlaceABN", "MeanOnlyBN+WN", "BN+SpectralNorm",
         "GN+AWS", "GN+SWS", "RMSGN", "AN", "EvoNormS0", "EvoNormB0", "MABN+WC")  # fmt: skip
WAYS = ("torch.compile", "AMP", "channels_last", "FSDP2", "EMA")
# What needs more than the plain model does.
EXCEPTIONS = {("MeanOnlyBN+WN", "FSDP2"): "after a forward"}


def backbone(norm: str) -> nn.Module:
    """Our stem and first stage, 16 channels wide, in double precision: rounding hides nothing."""
    torch.manual_seed(0)
    cfg = load_config(
        "coco/mask_rcnn_R_50_FPN_1x.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_normdet_resnet_backbone",
         "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
         "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.OUT_FEATURES", ["res2"],
         "MODEL.BACKBONE.FREEZE_AT", 0],
        norm=norm, norm_parts=["backbone"],
    )  # fmt: skip
    return build_backbone(cfg, ShapeSpec(channels=3)).double()


def images(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 48, generator=generator, dtype=torch.float64)


def trained(model: nn.Module, x: Tensor, run: Callable | None = None) -> dict[str, Tensor]:
    """The output of a training forward, and the gradients of its squares."""
    y = (model if run is None else run)(x)["res2"]
    y.double().square().mean().backward()
    found = {"output": y.detach()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            full = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            found[name.replace("_orig_mod.", "")] = full.clone()
    return found
