"""With a norm that detectron2 knows, our detector is detectron2's: same keys, same numbers."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import boxes as box_ops

from normdet import add_normdet_config, set_norm

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
DETECTORS = {
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "c4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "keypoints": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
}
NORMS = ["FrozenBN", "BN", "GN"]


def stock_config(detector: str, norm: str) -> CfgNode:
    cfg = get_cfg()
    if not (ZOO / DETECTORS[detector]).is_file():
        pytest.skip("this detectron2 came without its model zoo's configs")
    cfg.merge_from_file(str(ZOO / DETECTORS[detector]))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    if norm != "FrozenBN":
        for part in ("FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "RETINANET"):
            cfg.MODEL[part].NORM = norm
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    # An untrained model has low scores, so accept all detections.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    return cfg


def normdet_config(detector: str, norm: str) -> CfgNode:
    cfg = get_cfg()
    add_normdet_config(cfg)
    cfg.merge_from_other_cfg(stock_config(detector, norm))
    set_norm(cfg, norm)
    return cfg


def build_both(detector: str, norm: str) -> tuple[nn.Module, nn.Module]:
    """The stock model and ours with the same random weights."""
    torch.manual_seed(0)
    stock = build_model(stock_config(detector, norm))
    ours = build_model(normdet_config(detector, norm))
    for name, value in stock.state_dict().items():
        if ".norm." in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.4 + 0.8)
        # Outputs can grow under fixed statistics, so keep blocks near the identity.
        if name.endswith("conv3.norm.weight"):
            value *= 0.2
    assert list(stock.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def images(detector: str) -> list[dict]:
    """Two images of different sizes with two objects each."""
    generator = torch.Generator().manual_seed(1)
    inputs = []
    for height, width in ((96, 128), (128, 96)):
        image = torch.rand(3, height, width, generator=generator) * 255
        instances = Instances((height, width))
        boxes = torch.tensor([[8.0, 8.0, 56.0, 60.0], [30.0, 20.0, 90.0, 84.0]])
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor([0, 0])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(masks)
        if detector == "keypoints":
            from detectron2.structures import Keypoints

            points = torch.rand(2, 17, 3, generator=generator) * 40 + 10
            points[..., 2] = 2
            instances.gt_keypoints = Keypoints(points)
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def train_step(model: nn.Module, inputs: list[dict]) -> tuple[dict, dict]:
    torch.manual_seed(2)
    model.train()
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return losses, grads


@pytest.fixture
def nms_in_float64(monkeypatch):
    """torchvision's NMS wants boxes and scores of one dtype; detectron2 hands it float32 boxes."""
    batched_nms = box_ops.batched_nms
    monkeypatch.setattr(
        box_ops,
        "batched_nms",
        lambda boxes, scores, *rest: batched_nms(boxes.to(scores.dtype), scores, *rest),
    )


# In float64: in float32 the last bits, which differ from processor to processor, flip a ReLU or
# swap two scores, and whole layers' gradients or two detections move.
@pytest.mark.slow
@pytest.mark.usefixtures("nms_in_float64")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("detector", ["mask_rcnn", "retinanet"])
def test_same_keys_outputs_losses_and_gradients(detector, norm):
    stock, ours = (model.double() for model in build_both(detector, norm))
    inputs = images(detector)
    with torch.no_grad():
        pairs = zip(stock.eval()(inputs), ours.eval()(inputs), strict=True)
    for want, got in pairs:
        want, got = want["instances"], got["instances"]
        assert len(want) == len(got) > 0
        for field, value in want.get_fields().items():
            value, other = (getattr(v, "tensor", v) for v in (value, got.get(field)))
            if value.dtype == torch.bool:  # masks: a probability of one half may round either way
                assert (other != value).float().mean() < 1e-4, field
            else:  # boxes are float32, whatever the model is
                torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-5, msg=field)

    want_losses, want_grads = train_step(stock, inputs)
    losses, grads = train_step(ours, inputs)
    for name, value in want_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-8, atol=1e-12, msg=name)
    assert grads.keys() == want_grads.keys()
    for name, value in want_grads.items():
        assert value.norm() > 0, name
        assert (grads[name] - value).norm() <= 1e-7 * value.norm() + 1e-12, name
    for name, value in stock.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [*NORMS, "SyncBN"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_same_keys_everywhere(detector, norm):
    stock = build_model(stock_config(detector, norm))
    ours = build_model(normdet_config(detector, norm))
    shapes, our_shapes = (
        {name: value.shape for name, value in model.state_dict().items()} for model in (stock, ours)
    )
    assert shapes == our_shapes
    trained, our_trained = (
        {name for name, value in model.named_parameters() if value.requires_grad}
        for model in (stock, ours)
    )
    assert trained == our_trained
