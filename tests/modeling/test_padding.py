"""`IGNORE_PADDING`: what a detector makes of an image is what it makes of it alone."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import retinanet as retinanet_module
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.proposal_generator import rpn as rpn_module
from detectron2.modeling.roi_heads import fast_rcnn
from detectron2.modeling.roi_heads import roi_heads as roi_heads_module
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.checkpoint import checkpoint

from normdet import add_normdet_config, set_norm
from normdet.errors import NormdetError
from normdet.keys import check_config
from normdet.ops.padded import plain
from normdet.options import parse
from tests.covering import covering_options

# No side divides by 32 but those of the last.
SIZES = [(53, 70), (33, 97), (71, 20), (64, 96)]
DETECTORS = ("GeneralizedRCNN", "RetinaNet")
OPTIONS = [text for text in covering_options() if parse(text).init == ""]
QUICK = ("GN", "FRN+TLU", "FrozenBN", "BN")


def config(norm: str, detector: str = "GeneralizedRCNN", **keys) -> CfgNode:
    cfg = get_cfg()
    add_normdet_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", detector
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [103.0, 116.0, 123.0], [50.0, 50.0, 50.0]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 16
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 1, 8
    retina = detector.endswith("RetinaNet")
    cfg.MODEL.BACKBONE.NAME = (
        "build_retinanet_resnet_fpn_backbone" if retina else "build_resnet_fpn_backbone"
    )
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    levels = ["res3", "res4", "res5"] if retina else ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = levels
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [24], [32], [48], [64]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.NORMDET.IGNORE_PADDING, cfg.MODEL.NORMDET.GN.NUM_GROUPS = True, 4
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    parts = ["backbone", "fpn", "rpn_head", "retinanet_head", "fpn_top"]
    set_norm(cfg, norm, parts)
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    """In double precision, its affines, biases and statistics like no other's."""
    torch.manual_seed(0)
    model = build_model(cfg).double()
    for module in model.modules():
        if hasattr(module, "reweight"):
            module.reweight.starting = False  # by the first batch
    for value in model.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value += torch.rand_like(value) * 0.3
    with torch.no_grad():
        images = model.eval().preprocess_image(inputs())
        scale = list(model.backbone(images.tensor).values())[1].std()
    for name, value in model.state_dict().items():
        if name.endswith("weight") and any(part in name for part in _PREDICTORS):
            value *= 30 / scale  # scores and boxes that differ
    return model


_PREDICTORS = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred")


def inputs(sizes=SIZES) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for k, (height, width) in enumerate(sizes):
        pixels = torch.rand(3, height, width, generator=generator) * 80 * (k + 1)
        target = Instances((height, width))
        corners = torch.tensor([[2.0, 3, 18, 17], [5, 9, 19, 30]])
        target.gt_boxes = Boxes(torch.cat([corners[:k], corners[:1] + 1]).double())
        target.gt_classes = torch.arange(len(target.gt_boxes)) % 3
        made.append({"image": pixels.double(), "instances": target})
    return made


def first(labels, num_samples, positive_fraction, background):
    """detectron2's sampling without its chance."""
    positive = ((labels != -1) & (labels != background)).nonzero()[:, 0]
    negative = (labels == background).nonzero()[:, 0]
    count = min(int(num_samples * positive_fraction), len(positive))
    return positive[:count], negative[: num_samples - count]


def nms_of_single_scores(boxes, scores, classes, threshold):
    """detectron2 decodes boxes in single precision, whatever the model's."""
    return batched_nms(boxes, scores.float(), classes, threshold)


@pytest.fixture(autouse=True)
def nothing_left_to_chance(monkeypatch):
    for module in (proposal_utils, fast_rcnn, retinanet_module):
        monkeypatch.setattr(module, "batched_nms", nms_of_single_scores)
    monkeypatch.setattr(rpn_module, "subsample_labels", first)
    monkeypatch.setattr(roi_heads_module, "subsample_labels", first)


def found(model: nn.Module, batch: list[dict]) -> list[dict]:
    with torch.no_grad():
        outputs = model.eval()(batch)
    return [
        {name: getattr(v, "tensor", v) for name, v in one["instances"].get_fields().items()}
        for one in outputs
    ]


def learned(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Losses and the gradients of their sum, of a copy: some methods learn in a forward."""
    model = copy.deepcopy(model).train()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()} | grads


def assert_close(got: dict, want: dict) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "detector"),
    [
        pytest.param(norm, name, marks=[] if norm in QUICK else pytest.mark.slow)
        for name in DETECTORS
        for norm in OPTIONS
    ],
)
def test_detections_are_those_of_the_image_alone(norm, detector):
    model, batch = build(config(norm, detector)), inputs()
    alone = [found(model, [one])[0] for one in batch]
    assert all(len(one["scores"]) for one in alone)
    for got, want in zip(found(model, batch), alone, strict=True):
        assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(norm, marks=[] if norm in QUICK else pytest.mark.slow)
        for norm in OPTIONS
        if not parse(norm).build_norm(8).batch_statistics
    ],
)
def test_losses_and_gradients_are_means_of_those_alone(norm):
    model, batch = build(config(norm)), inputs()
    alone = [learned(model, [one]) for one in batch]
    mean = {k: torch.stack([one[k] for one in alone]).mean(0) for k in alone[0]}
    assert_close(learned(model, batch), mean)


def normalizer(model: nn.Module, batch: list[dict]) -> float:
    model = copy.deepcopy(model).train()
    with EventStorage():
        model(batch)
    return model.loss_normalizer


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN", "FRN+TLU", "FrozenBN"])
def test_retinanets_losses_are_those_alone(norm):
    """Each is divided by a moving average of the number of anchors that match."""
    model, batch = build(config(norm, "RetinaNet")), inputs()
    alone, weights = [], []
    for one in batch:
        alone.append(learned(model, [one]))
        weights.append(normalizer(model, [one]))
    got, weight = learned(model, batch), normalizer(model, batch)
    summed = {
        name: sum(one[name] * w / weight for one, w in zip(alone, weights, strict=True))
        for name in got
    }
    assert_close(got, summed)


def model_of(norm="GN", **keys) -> nn.Module:
    return build(config(norm, **keys))


@pytest.mark.parametrize("count", [1, 2, 8])
def test_it_is_the_same_for_any_number_of_images(count):
    model, batch = model_of("FRN+TLU"), inputs((SIZES * 2)[:count])
    for got, one in zip(found(model, batch), batch, strict=True):
        assert_close(got, found(model, [one])[0])


def test_a_batch_without_padding_is_an_ordinary_one():
    model = model_of()
    images = model.preprocess_image(inputs([(64, 96)] * 2))
    assert type(images.tensor) is torch.Tensor
    want = model.backbone(images.tensor)
    batch = inputs([(64, 96), (64, 96), (32, 32)])
    got = model.backbone(model.preprocess_image(batch).tensor)
    for name in want:
        torch.testing.assert_close(got[name][:2], want[name])


def test_an_image_of_one_pixel_is_an_image():
    model, batch = model_of(), inputs([(1, 1), (40, 50), (3, 64)])
    for got, one in zip(found(model, batch), batch, strict=True):
        assert_close(got, found(model, [one])[0])
    assert all(torch.isfinite(v).all() for v in learned(model, batch).values())


def test_a_square_of_padding_is_ignored_too():
    """As backbones like ViT ask for it."""
    model, batch = model_of(), inputs()
    if not hasattr(model.backbone, "padding_constraints"):
        pytest.skip("this detectron2 pads no squares")
    want = found(model, batch)
    model.backbone._square_pad = 128
    assert model.preprocess_image(batch).tensor.shape[-2:] == (128, 128)
    for got, one in zip(found(model, batch), want, strict=True):
        assert_close(got, one)


@pytest.mark.slow
def test_threads_and_other_models_do_not_meet():
    models = [model_of("GN"), model_of("FRN+TLU")]
    batches = [inputs(), inputs(SIZES[::-1])]
    want = [[found(model, batch) for batch in batches] for model in models]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (pool.submit(found, model, batch), want[m][b])
            for _ in range(3)
            for m, model in enumerate(models)
            for b, batch in enumerate(batches)
        ]
        for job, alone in jobs:
            for got, one in zip(job.result(), alone, strict=True):
                assert_close(got, one)


def test_recomputation_in_backward_knows_the_images_too():
    model, batch = model_of(), inputs()
    want = learned(model, batch)
    block = model.backbone.bottom_up.res4[1]
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
        model.eval()(inputs(SIZES[::-1]))  # another batch before backward
    sum(losses.values()).backward()
    assert_close({n: p.grad for n, p in model.named_parameters()},
                 {n: want[n] for n, _ in model.named_parameters()})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_lean_and_channels_last_change_nothing(last):
    keys = {"MODEL__NORMDET__RECOMPUTE": True}
    want, lean = learned(model_of(), inputs()), model_of(**keys)
    if last:
        lean = lean.to(memory_format=torch.channels_last)
    assert_close(learned(lean, inputs()), want)


def test_a_detector_without_such_a_form_is_refused():
    cfg = config("GN")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(NormdetError, match="NormdetGeneralizedRCNN"):
        check_config(cfg)
    with pytest.raises(NormdetError, match="use_normdet_parts"):
        build_model(cfg)


def test_a_backbone_that_mixes_places_otherwise_is_refused():
    model = model_of()
    model.backbone.bottom_up.res5 = nn.Sequential(model.backbone.bottom_up.res5, Turned())
    model.backbone.bottom_up.stages[-1] = model.backbone.bottom_up.res5
    with pytest.raises(NormdetError, match="IGNORE_PADDING False"):
        model.eval()(inputs())


class Turned(nn.Module):
    def forward(self, x):
        return x.flip(3)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["FrozenBN", "AffineBN"])
def test_folded_norms_give_the_same(norm):
    folded = model_of(norm, MODEL__NORMDET__FOLD_FIXED=True)
    own, batch = model_of(norm), inputs()
    for got, want in zip(found(folded, batch), found(own, batch), strict=True):
        assert_close(got, want)
    assert_close(learned(folded, batch), learned(own, batch))


class First(nn.Module):
    """A backbone's stem and first block."""

    def __init__(self, resnet: nn.Module):
        super().__init__()
        self.stem, self.block = resnet.stem, resnet.res2[0]

    def forward(self, x):
        return self.block(self.stem(x))


@pytest.mark.slow
def test_what_is_compiled_knows_the_images():
    model = model_of("GN").eval()
    first = First(model.backbone.bottom_up)
    torch._dynamo.reset()
    compiled = torch.compile(first, backend="aot_eager")
    for sizes in (SIZES, SIZES[::-1]):
        x = model.preprocess_image(inputs(sizes)).tensor
        for given in (x, plain(x)):
            got, want = compiled(given), first(given)
            assert type(got) is type(want)
            torch.testing.assert_close(plain(got), plain(want))


def test_autocast_keeps_an_image_alone():
    model, batch = build(config("GN")).float().train(), inputs()
    for one in batch:
        one["image"] = one["image"].float()
    with torch.autocast("cpu", torch.bfloat16):
        whole = model.backbone(model.preprocess_image(batch).tensor)["p3"]
        for n, one in enumerate(batch):
            alone = model.backbone(model.preprocess_image([one]).tensor)["p3"][0]
            height, width = (-(-side // 8) for side in one["image"].shape[1:])
            off = whole[n, :, :height, :width] - alone[:, :height, :width]
            assert off.float().square().mean() < 1e-3 * alone.float().square().mean()


def test_tracing_and_scripting_are_refused_in_words():
    model = model_of().float()
    image = inputs()[0]["image"].float()
    with pytest.raises(NormdetError, match="cannot be traced"):
        torch.jit.trace(lambda x: model.eval().inference([{"image": x}]), image)
    for detector in DETECTORS:
        with pytest.raises(NormdetError, match="scripted"):
            torch.jit.script(build(config("GN", detector)).eval())


def test_masks_and_panoptic_fpn_find_the_same():
    keys = {
        "MODEL__MASK_ON": True, "MODEL__ROI_MASK_HEAD__NAME": "MaskRCNNConvUpsampleHead",
        "MODEL__ROI_MASK_HEAD__NUM_CONV": 1, "MODEL__ROI_MASK_HEAD__CONV_DIM": 8,
        "MODEL__SEM_SEG_HEAD__CONVS_DIM": 16,
        "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["p2", "p3", "p4", "p5"],
    }  # fmt: skip
    model, batch = build(config("GN", "PanopticFPN", **keys)), inputs()
    for got, one in zip(found(model, batch), batch, strict=True):
        alone = found(model, [one])[0]
        assert "pred_masks" in alone
        assert_close(got, alone)
