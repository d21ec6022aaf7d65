"""What torch.export records of a detector finds what detectron2 finds, also if nothing is left."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import batched_nms
from detectron2.modeling import anchor_generator, build_model, poolers
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.structures import Boxes, ImageList
from torch import Tensor, nn

from normdet.export import recordable
from normdet.export.check import compare
from normdet.export.record import nms_by_label
from normdet.export.wrap import DETECTOR, Wrapped
from tests.surgery.networks import zoo

from .recorder import need_recorder

try:
    from detectron2.export import TracingAdapter  # noqa: F401
except ImportError:
    pytest.skip("this detectron2 exports with caffe2 alone", allow_module_level=True)


def boxes(count: int, seed: int = 0) -> Tensor:
    """Boxes in and around an image of 60 x 80 pixels, some of them empty."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100 - 10
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 40 - 3], 1)


def scores(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def both(function):
    """The result of detectron2's own functions, and that of the recordable ones."""
    want = function()
    with recordable():
        got = function()
    return got, want


def assert_same(got, want) -> None:
    assert got.get_fields().keys() == want.get_fields().keys()
    assert got.image_size == want.image_size
    for name, value in want.get_fields().items():
        mine, theirs = (getattr(x, "tensor", x) for x in (got.get(name), value))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_suppression(count):
    labels = torch.arange(count) % 3
    box, score = boxes(count).clamp(min=0), scores(count)
    assert torch.equal(nms_by_label(box, score, labels, 0.5), batched_nms(box, score, labels, 0.5))


@pytest.mark.parametrize("bad", ["none", "some", "all"])
def test_proposals(bad):
    levels = [boxes(200)[None], boxes(30, seed=1)[None]]
    logits = [scores(1, 200), scores(1, 30)]
    if bad != "none":
        for logit in logits:
            logit[:, :: 1 if bad == "all" else 7] = float("nan")

    def find():
        copies = [level.clone() for level in levels]
        return rpn.find_top_rpn_proposals(copies, logits, [(60, 80)], 0.7, 50, 20, 2.0, False)

    (got,), (want,) = both(find)
    assert_same(got, want)
    assert len(want) == (0 if bad == "all" else 20)


@pytest.mark.parametrize("of_each_class", [True, False])
@pytest.mark.parametrize("threshold", [0.05, 0.9, 2.0])
@pytest.mark.parametrize("most", [10, -1])
def test_box_head(of_each_class, threshold, most):
    regions = torch.cat([boxes(40, seed=k) for k in range(3 if of_each_class else 1)], 1)
    regions[-1] = float("inf")  # the last: detectron2 counts what is kept without it
    score = scores(40, 4)

    def find():
        return fast_rcnn.fast_rcnn_inference_single_image(
            regions.clone(), score, (60, 80), threshold, 0.5, most
        )

    (got, kept), (want, others) = both(find)
    assert_same(got, want)
    assert torch.equal(kept, others) and (len(want) > 0) == (threshold < 2)


@pytest.mark.parametrize("threshold", [0.05, 0.99, 2.0])
def test_candidates_of_a_level(threshold):
    class Model:
        box2box_transform = retinanet.Box2BoxTransform((1.0, 1.0, 1.0, 1.0))

    anchors, score, deltas = Boxes(boxes(50).abs()), scores(50, 3), boxes(50, seed=5) / 100

    def find():
        home = retinanet.RetinaNet._decode_per_level_predictions
        return home(Model(), anchors, score, deltas, threshold, 20, (60, 80))

    got, want = both(find)
    assert_same(got, want)


def test_anchors_images_and_regions():
    like = torch.zeros(1)
    for offset in (0.0, 0.5):
        for got, want in zip(
            *both(lambda o=offset: anchor_generator._create_grid_offsets((3, 5), 8, o, like)),
            strict=True,
        ):
            assert torch.equal(got, want) and got.dtype == want.dtype
    image = torch.rand(3, 33, 64)
    got, want = both(lambda: ImageList.from_tensors([image], 32))
    assert torch.equal(got.tensor, want.tensor)
    assert [tuple(map(int, size)) for size in want.image_sizes] == got.image_sizes
    lists = [Boxes(boxes(3)), Boxes(boxes(0)), Boxes(boxes(2))]
    got, want = both(lambda: poolers.convert_boxes_to_pooler_format(lists))
    assert torch.equal(got, want)


def test_detectron2_is_itself_again():
    before = Boxes.__init__, rpn.find_top_rpn_proposals, ImageList.__dict__["from_tensors"]
    with pytest.raises(ZeroDivisionError), recordable():
        1 / 0  # noqa: B018
    after = Boxes.__init__, rpn.find_top_rpn_proposals, ImageList.__dict__["from_tensors"]
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["COCO-Detection/retinanet_R_50_FPN_1x.yaml",
     "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"],
)  # fmt: skip
def test_a_detector_of_detectron2s_own(name):
    """What stops it without our functions, and that nothing does with them."""
    need_recorder()
    cfg = get_cfg()
    cfg.merge_from_file(zoo(name))
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
         "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
         "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = build_model(cfg).eval()
    image = torch.rand(3, 96, 128) * 255
    wrapped = Wrapped(model, DETECTOR, image)

    def record():
        with torch.no_grad():
            return torch.export.export(
                wrapped.module, (image,), strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip

    with pytest.raises(Exception, match="[Cc]ould not (guard on|extract).*data-dependent"):
        record()
    with recordable():
        program = record().module()
    with torch.no_grad():
        (row,) = compare(wrapped, program, [image], dynamic=False)
    assert row.passes and row.found > 50, row
