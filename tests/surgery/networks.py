"""The networks of the documentation's table, with small inputs and a training loss of each."""

import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import detectron2
import pytest
import timm
import torch
import torchvision
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def zoo(name: str) -> str:
    if not (ZOO / name).is_file():
        pytest.skip("this detectron2 came without its model zoo's configs")
    return str(ZOO / name)


def from_yaml(name: str, *opts) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(zoo(name), allow_unsafe=True)
    small = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
    small += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]
    cfg.merge_from_list([*small, *opts])
    return build_model(cfg)


def regnet() -> nn.Module:
    cfg = LazyConfig.load(zoo("new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ.py"))
    return instantiate(cfg.model.backbone)


def vitdet_pyramid() -> nn.Module:
    try:
        from detectron2.modeling import SimpleFeaturePyramid, ViT
    except ImportError:
        pytest.skip("this detectron2 has no ViTDet")
    net = ViT(
        img_size=64, embed_dim=32, depth=1, num_heads=2, window_size=2,
        residual_block_indexes=[], out_feature="last",
    )  # fmt: skip
    return SimpleFeaturePyramid(
        net, in_feature="last", out_channels=32, scale_factors=(4.0, 2.0, 1.0, 0.5), norm="LN",
        square_pad=64,
    )


def without(*names: str) -> None:
    """Let a project be imported whose data loading needs packages that are not here."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            stand_in = types.ModuleType(name)
            stand_in.__getattr__ = lambda attribute: None
            sys.modules[name] = stand_in


def panoptic_deeplab_heads() -> nn.Module:
    """The semantic head, with depthwise separable convolutions and atrous pooling."""
    pytest.importorskip("detectron2.projects.deeplab")
    without("panopticapi", "panopticapi.utils", "cv2")
    from detectron2.projects.panoptic_deeplab.panoptic_seg import PanopticDeepLabSemSegHead

    shapes = {name: ShapeSpec(channels=8, stride=s) for name, s in (("res2", 4), ("res5", 16))}
    return PanopticDeepLabSemSegHead(
        shapes, decoder_channels=[8, 8], norm="BN", head_channels=8, loss_weight=1.0,
        loss_type="cross_entropy", loss_top_k=0.2, ignore_value=255, num_classes=3,
        common_stride=4, project_channels=[4], aspp_dilations=[2, 3, 4], aspp_dropout=0.0,
        use_depthwise_separable_conv=True, train_size=None,
    )  # fmt: skip


def panoptic_deeplab() -> nn.Module:
    """The whole network, its ResNet-50 dilated."""
    pytest.importorskip("detectron2.projects.deeplab")
    without("panopticapi", "panopticapi.utils", "cv2")
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    cfg = get_cfg()
    add_panoptic_deeplab_config(cfg)
    head = {"IN_FEATURES": ["res2", "res3", "res5"], "PROJECT_FEATURES": ["res2", "res3"],
            "PROJECT_CHANNELS": [8, 8], "ASPP_CHANNELS": 16, "ASPP_DILATIONS": [2, 3, 4],
            "HEAD_CHANNELS": 16, "CONVS_DIM": 16, "COMMON_STRIDE": 4, "NORM": "BN"}  # fmt: skip
    small = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "PanopticDeepLab", *R50]
    small += ["DATASETS.TRAIN", ("panoptic_deeplab_of_no_data",)]
    small += ["MODEL.RESNETS.OUT_FEATURES", head["IN_FEATURES"], "MODEL.RESNETS.RES5_DILATION", 2]
    small += ["MODEL.SEM_SEG_HEAD.NAME", "PanopticDeepLabSemSegHead"]
    small += ["MODEL.INS_EMBED_HEAD.NAME", "PanopticDeepLabInsEmbedHead"]
    for part in ("SEM_SEG_HEAD", "INS_EMBED_HEAD"):
        small += [word for key, value in head.items() for word in (f"MODEL.{part}.{key}", value)]
    cfg.merge_from_list(small)
    return build_model(cfg)


def point_rend() -> nn.Module:
    """Mask R-CNN whose mask head is PointRend's."""
    without("cv2")
    from detectron2.projects.point_rend import add_pointrend_config

    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0,
        "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "",
        "MODEL.ROI_MASK_HEAD.FC_DIM", 64, "MODEL.ROI_MASK_HEAD.NUM_FC", 2,
        "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 7, "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True,
        "MODEL.ROI_MASK_HEAD.IN_FEATURES", "['p2']", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
    ])  # fmt: skip
    return build_model(cfg)


DETECTION = torchvision.models.detection
BARE = {"weights": None, "weights_backbone": None, "num_classes": 3}
R50 = ("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0)

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision ResNet-50": torchvision.models.resnet50,
    "torchvision RegNet": torchvision.models.regnet_y_400mf,
    "torchvision Mask R-CNN": partial(
        DETECTION.maskrcnn_resnet50_fpn, **BARE, trainable_backbone_layers=5
    ),
    "torchvision Mask R-CNN v2": partial(DETECTION.maskrcnn_resnet50_fpn_v2, **BARE),
    "torchvision RetinaNet": partial(
        DETECTION.retinanet_resnet50_fpn, **BARE, trainable_backbone_layers=5
    ),
    "torchvision RetinaNet v2": partial(DETECTION.retinanet_resnet50_fpn_v2, **BARE),
    "timm ResNet": partial(timm.create_model, "resnet50"),
    "timm SE-ResNet": partial(timm.create_model, "seresnet50"),
    "timm ResNeXt": partial(timm.create_model, "resnext50_32x4d"),
    "timm RegNet": partial(timm.create_model, "regnety_004"),
    "detectron2 RegNet and FPN": regnet,
    "detectron2 Mask R-CNN": partial(
        from_yaml, "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", *R50
    ),
    "detectron2 RetinaNet": partial(from_yaml, "COCO-Detection/retinanet_R_50_FPN_1x.yaml", *R50),
    "detectron2 Cascade": partial(from_yaml, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", *R50),
    "detectron2 keypoints": partial(
        from_yaml, "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", *R50
    ),
    "detectron2 panoptic FPN": partial(
        from_yaml, "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", *R50,
        "MODEL.SEM_SEG_HEAD.NORM", "BN",
    ),
    "detectron2 semantic FPN": partial(
        from_yaml, "Misc/semantic_R_50_FPN_1x.yaml", *R50, "MODEL.SEM_SEG_HEAD.NORM", "BN"
    ),
    "detectron2 PointRend": point_rend,
    "detectron2 Panoptic-DeepLab": panoptic_deeplab,
    "detectron2 Panoptic-DeepLab head": panoptic_deeplab_heads,
    "detectron2 ViTDet pyramid": vitdet_pyramid,
}  # fmt: skip


def backbone_of(model: nn.Module) -> nn.Module:
    return getattr(model, "backbone", model)


def spread_statistics(model: nn.Module) -> nn.Module:
    """Running averages as training makes them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def features(model: nn.Module) -> list[torch.Tensor]:
    """What a network, or a detector's backbone and shared heads, makes of one input."""
    generator = torch.Generator().manual_seed(1)
    if type(model).__name__ == "PanopticDeepLabSemSegHead":
        fine, coarse = (torch.rand(2, 8, side, side, generator=generator) for side in (16, 4))
        return [model.layers({"res2": fine, "res5": coarse})]
    y = backbone_of(model)(torch.rand(2, 3, 64, 64, generator=generator))
    out = [y] if isinstance(y, torch.Tensor) else list(y.values())
    if hasattr(model, "sem_seg_head"):
        out.append(model.sem_seg_head.layers(y))
    if hasattr(model, "ins_embed_head"):
        out += model.ins_embed_head.layers(y)
    if hasattr(model, "head_in_features"):
        out += [t for maps in model.head([y[f] for f in model.head_in_features]) for t in maps]
    elif hasattr(model, "head"):
        out += list(model.head(list(y.values())).values()) if isinstance(y, dict) else []
    return out


def detectron2_inputs() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in ((64, 96), (96, 64)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 44.0], [20.0, 12.0, 60.0, 56.0]]))
        instances.gt_classes = torch.zeros(2, dtype=torch.long)
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[:, 14:40, 22:40] = True
        instances.gt_masks = BitMasks(masks)
        points = torch.rand(2, 17, 3, generator=generator) * 20 + 20
        points[..., 2] = 2
        instances.gt_keypoints = Keypoints(points)
        inputs.append({
            "image": torch.rand(3, height, width, generator=generator) * 255,
            "instances": instances, "sem_seg": torch.zeros(height, width, dtype=torch.long),
            "height": height, "width": width,
        })  # fmt: skip
    return inputs


def loss(model: nn.Module) -> torch.Tensor:
    """One training loss."""
    model.train()
    if type(model).__module__.startswith("detectron2.modeling.meta_arch"):
        with EventStorage():
            return sum(model(detectron2_inputs()).values())
    if type(model).__module__.startswith("torchvision.models.detection"):
        masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
        masks[:, 8:40, 8:40] = 1
        target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        return sum(model([torch.rand(3, 64, 64)], [{**target, "masks": masks}]).values())
    return sum(f.square().mean() for f in features(model))


def infer(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        if type(model).__module__.startswith("detectron2.modeling.meta_arch"):
            model(detectron2_inputs())
        elif type(model).__module__.startswith("torchvision.models.detection"):
            model([torch.rand(3, 64, 64)])
        else:
            features(model)
