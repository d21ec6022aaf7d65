"""detectron2's own export tests, applied to our detectors: scripting and tracing.

Small detectors from random weights are traced on a smaller image than they are tested on. With any
norm, the ways of exporting detectron2's own detectors work.
"""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.testing import (
    convert_scripted_instances,
    random_boxes,
    reload_script_model,
)
from torch import Tensor, nn

from normdet.config import load_config
from normdet.modeling.keypoint_head import normalize_keypoint_head
from normdet.options import parse

try:
    from detectron2.export import TracingAdapter, scripting_with_instances
    from detectron2.export.torchscript_patch import patch_builtin_len
except ImportError:
    pytest.skip("this detectron2 exports with caffe2 alone", allow_module_level=True)

# All that a random detector finds in a few regions: nothing is near a threshold or a limit, where
# last bits decide. Pixels of its weights' scale, for fixed statistics leave them as they are.
FEW = ("MODEL.PIXEL_STD", (58.0, 58.0, 58.0), "MODEL.RPN.POST_NMS_TOPK_TEST", 20,
       "MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
       "MODEL.RETINANET.NUM_CLASSES", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0,
       "MODEL.RETINANET.NMS_THRESH_TEST", 1.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 5000,
       "TEST.DETECTIONS_PER_IMAGE", 5000)  # fmt: skip
SHALLOW = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
KEYPOINTS = ("MODEL.MASK_ON", False, "MODEL.KEYPOINT_ON", True,
             "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (32, 32))  # fmt: skip
CASCADE = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads",
           "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)  # fmt: skip
BOXES = {"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor}
IN_REGIONS = {**BOXES, "proposal_boxes": Boxes, "objectness_logits": Tensor, "pred_masks": Tensor}
NORMS = ("GN", "FRN+TLU")
# Their layers are scripted and traced alone in other tests: here one detector each.
OTHERS = ("BN", "FrozenBN", "GN+WS")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def config(name: str, norm: str, *opts) -> CfgNode:
    here = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "")
    return load_config(f"coco/{name}.yaml", [*here, *FEW, *opts], norm=norm)


def detector(name: str, norm: str, *opts) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config(name, norm, *opts)).eval()


def picture(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1)) * 255


def assert_alike(got: Instances, want: Instances) -> None:
    """The same detections, in any order: those with nearly the same score may change places."""
    assert len(got) == len(want) > 0
    for one, other in ((want, got), (got, want)):
        places = [
            torch.column_stack([x.pred_boxes.tensor, 1e4 * x.pred_classes, 1e3 * x.scores])
            for x in (one, other)
        ]
        nearest = torch.cdist(*places).argmin(1)
        for name in ("pred_classes", "pred_boxes", "scores", "pred_masks", "pred_keypoints"):
            if one.has(name):
                mine, theirs = (getattr(x, name) for x in (one, other))
                mine, theirs = (getattr(x, "tensor", x).float() for x in (mine, theirs))
                far = 0.02 if name in ("pred_boxes", "pred_keypoints") else 1e-3
                torch.testing.assert_close(theirs[nearest], mine, rtol=1e-3, atol=far)


def alone(model: nn.Module, image: Tensor) -> Instances:
    return model.inference([{"image": image}], do_postprocess=False)[0]


def in_pixels(model: nn.Module, image: Tensor) -> Instances:
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
    return model.inference(inputs, do_postprocess=True)[0]["instances"]


def by_forward(model: nn.Module, image: Tensor) -> Instances:
    return model([{"image": image}])[0]["instances"]


def two(model: nn.Module, first: Tensor, second: Tensor) -> list[Instances]:
    return model.inference([{"image": first}, {"image": second}], do_postprocess=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm"),
    [("mask_rcnn_R_50_FPN_1x", norm) for norm in (*NORMS, *OTHERS)]
    + [("mask_rcnn_R_50_C4_1x", norm) for norm in NORMS],
)
def test_mask_rcnn_is_scripted_and_takes_other_sizes(name, norm):
    model = detector(name, norm, *(SHALLOW if "FPN" in name else ()))
    scripted = reload_script_model(scripting_with_instances(model, IN_REGIONS))
    image = picture(96, 128)
    inputs = [{"image": image}, {"image": image[:, ::2, ::2].contiguous()}]
    with torch.no_grad():
        want = model.inference(inputs, do_postprocess=False)[0]
        got = scripted.inference(inputs, do_postprocess=False)[0]
    assert_alike(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_retinanet_is_scripted(norm):
    model = detector("retinanet_R_50_FPN_1x", norm, *SHALLOW)
    scripted = scripting_with_instances(model, BOXES)
    image = picture(96, 128)
    inputs = [{"image": image}] * 2
    with torch.no_grad():
        want = model(inputs)[0]["instances"]
        got = convert_scripted_instances(scripted(inputs)[0])
    assert_alike(detector_postprocess(got, 96, 128), want)


DETECTORS = {
    "FPN": ("mask_rcnn_R_50_FPN_1x", alone, SHALLOW),
    "FPN in pixels": ("mask_rcnn_R_50_FPN_1x", in_pixels, SHALLOW),
    "two images": ("mask_rcnn_R_50_FPN_1x", two, SHALLOW),
    "keypoints": ("mask_rcnn_R_50_FPN_1x", alone, (*KEYPOINTS, *SHALLOW)),
    "cascade": ("mask_rcnn_R_50_FPN_1x", alone, (*CASCADE, *SHALLOW)),
    "C4": ("mask_rcnn_R_50_C4_1x", alone, ()),
    "RetinaNet": ("retinanet_R_50_FPN_1x", by_forward, SHALLOW),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "norm"),
    [(kind, norm) for kind in DETECTORS for norm in NORMS] + [("FPN", norm) for norm in OTHERS],
)
def test_a_detector_is_traced_and_takes_other_sizes(kind, norm):
    name, infer, opts = DETECTORS[kind]
    model = detector(name, norm, *opts)
    images = (picture(96, 128),) * (2 if infer is two else 1)
    smaller = tuple(image[:, :64, :96].contiguous() for image in images)
    adapter = TracingAdapter(model, images, infer).eval()
    with torch.no_grad():
        traced = reload_script_model(torch.jit.trace(adapter, smaller, check_trace=False))
        want, got = infer(model, *images), adapter.outputs_schema(traced(*images))
    pairs = zip(want, got, strict=True) if infer is two else [(want, got)]
    for mine, theirs in pairs:
        assert_alike(theirs, mine)


@pytest.mark.parametrize("norm", (*NORMS, *OTHERS))
def test_the_keypoint_head_is_traced_for_any_number_of_boxes(norm):
    torch.manual_seed(0)
    head = KRCNNConvDeconvUpsampleHead(
        ShapeSpec(channels=4, height=14, width=14), num_keypoints=17, conv_dims=(4,)
    )

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = normalize_keypoint_head(head, parse(norm))

        def forward(self, x, *boxes):
            found = self.head(x, [Instances((100, 100), pred_boxes=Boxes(b)) for b in boxes])
            return tuple(instances.pred_keypoints for instances in found)

    def inputs(first: int, second: int) -> tuple[Tensor, Tensor, Tensor]:
        features = torch.randn(first + second, 4, 14, 14)
        return features, random_boxes(first), random_boxes(second)

    module = Head().eval()
    with torch.no_grad(), patch_builtin_len():
        traced = torch.jit.trace(module, inputs(15, 15), check_trace=False)
        others = inputs(12, 10)
        for got, want in zip(traced(*others), module(*others), strict=True):
            torch.testing.assert_close(got, want)
