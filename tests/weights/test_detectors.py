"""Whole detectors of mmdetection and torchvision: equal outputs of every part."""

import random

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.modeling import build_model
from torch import nn

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.keys import put
from normdet.weights import Checkpointer, check_weights, import_weights, required_config
from normdet.weights.importers.layout import CLASSIFIER
from tests.weights.networks import WSConv2d, group_norm, standardize, trained

CLASSES = 5
WIDTH = 64


def tolerance(value):
    return {"rtol": 1e-4, "atol": 1e-4 * value.abs().max().item()}


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
    """What mmdetection keeps in a file: its whole config, as text."""
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


def adopted(imported):
    """A config that says what the file asks for, and nothing else of its own."""
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    for key, value in required_config(imported.facts, imported.model).items():
        put(cfg, key, value)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(("ws", "rgb"), [(False, False), (True, True)])
def test_mmdetection_mask_rcnn(ws, rgb, tmp_path):
    torch.manual_seed(0)
    theirs = trained(MMDetection(WSConv2d if ws else nn.Conv2d))
    path = str(tmp_path / "epoch_24.pth")
    torch.save({"state_dict": theirs.published(), "meta": meta(ws, rgb)}, path)
    imported = import_weights({"model": theirs.published(), "meta": meta(ws, rgb)}, path)
    cfg = adopted(imported)
    assert not imported.left_out and not imported.facts.assumed
    option = "GN+WS" if ws else "GN"
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        assert node.NORM == option
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == CLASSES
    assert (cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC) == (4, 1)
    assert cfg.INPUT.FORMAT == ("RGB" if rgb else "BGR")
    ours = build_model(cfg).eval()
    checkpointer = Checkpointer(ours, cfg=cfg)
    checkpointer.load(path)
    report = checkpointer.report
    assert set(report.matched) == set(ours.state_dict()) and not report.warnings
    assert not report.missing and not report.unexpected

    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        want, got = theirs.pyramid(x), ours.backbone(x)
        for theirs_map, ours_map in zip(want, got.values(), strict=True):
            torch.testing.assert_close(ours_map, theirs_map, **tolerance(theirs_map))
        head = ours.proposal_generator.rpn_head(list(got.values()))
        for one, other in zip(theirs.proposals(want), head, strict=True):
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(b, a, **tolerance(a))
        rois = torch.randn(3, WIDTH, 7, 7)
        heads = ours.roi_heads
        for a, b in zip(theirs.boxes(rois), heads.box_predictor(heads.box_head(rois)), strict=True):
            torch.testing.assert_close(b, a, **tolerance(a))
        rois = torch.randn(3, WIDTH, 14, 14)
        torch.testing.assert_close(
            heads.mask_head.layers(rois), theirs.masks(rois), **tolerance(theirs.masks(rois))
        )
    # A part under another norm is noticed, not only the backbone.
    cfg.MODEL.FPN.NORM = "GN" if ws else "GN+WS"
    with pytest.raises(NormdetError, match=r"MODEL\.FPN\.NORM .* set MODEL\.FPN\.NORM GN"):
        Checkpointer(build_model(cfg), cfg=cfg).load(path)


def test_anchors_and_boxes_are_mmdetection_s():
    """Order, place and size of anchors, and what a box's deltas are divided by."""
    imported = import_weights({"model": MMDetection(nn.Conv2d).published()}, "w.pth")
    model = build_model(adopted(imported)).eval()
    ratios = torch.tensor([0.5, 1.0, 2.0])
    for stride, ours in zip(
        (4, 8, 16, 32, 64), model.proposal_generator.anchor_generator.cell_anchors, strict=True
    ):
        heights, widths = stride * 8 * ratios.sqrt(), stride * 8 / ratios.sqrt()
        theirs = torch.stack([-widths, -heights, widths, heights], 1) / 2
        torch.testing.assert_close(ours, theirs)
    assert model.proposal_generator.anchor_generator.offset == 0
    box, delta = torch.tensor([[10.0, 20.0, 50.0, 100.0]]), torch.tensor([[0.5, -1.0, 2.0, 1.0]])
    dx, dy, dw, dh = (delta * torch.tensor([0.1, 0.1, 0.2, 0.2]))[0]
    x, y, w, h = 30 + 40 * dx, 60 + 80 * dy, 40 * dw.exp(), 80 * dh.exp()
    want = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])[None]
    got = model.roi_heads.box_predictor.box2box_transform.apply_deltas(delta, box)
    torch.testing.assert_close(got, want)
    assert model.roi_heads.box_pooler.level_poolers[0].aligned


def test_what_mmdetection_has_otherwise_is_left_out_with_the_reason():
    state = MMDetection(nn.Conv2d).published()
    first = {key.removeprefix("roi_head."): value for key, value in state.items()}
    imported = import_weights(first, "w.pth")
    assert not any(key.startswith("roi_heads.") for key in imported.model)
    assert "background" in imported.left_out["bbox_head.fc_cls.weight"]
    assert "backbone.fpn_output5.norm.bias" in imported.model

    softmax = state | {"rpn_head.rpn_cls.bias": torch.zeros(6)}
    imported = import_weights(softmax, "w.pth")
    assert not any("rpn_head" in key for key in imported.model)
    assert "two scores" in imported.left_out["rpn_head.rpn_cls.weight"]

    one_stage = {key: value for key, value in state.items() if key.startswith("backbone.")}
    one_stage["neck.lateral_convs.0.conv.weight"] = torch.ones(WIDTH, 128, 1, 1)
    imported = import_weights(one_stage, "w.pth")
    assert set(imported.left_out) == {"neck.lateral_convs.0.conv.weight"}


@pytest.mark.parametrize("layout", ["mmdetection", "torchvision"])
def test_what_is_left_out_has_the_files_names(layout):
    if layout == "mmdetection":
        state, backbone = MMDetection(nn.Conv2d).published(), "backbone."
    else:
        theirs = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights_backbone=None)
        state, backbone = theirs.state_dict(), "backbone.body."
    more = {f"{backbone}fc.bias": torch.zeros(3), "roi_heads.else.bias": torch.zeros(3)}
    imported = import_weights({**state, **more}, "w.pth")
    assert imported.left_out == {
        f"{backbone}fc.bias": CLASSIFIER,
        "roi_heads.else.bias": "this part has no exact counterpart in detectron2",
    }


@pytest.mark.parametrize(
    "text",
    [
        "x = [" * 5000,
        f"model = dict(a=1)\nimg_norm_cfg = dict(mean=[1{'0' * 400}], std=[0], to_rgb=1)",
        "model = __import__('os').system('touch pwned')",
        "model = (",
        "\0",
        "model = 3",
    ],
)
def test_a_config_in_a_file_is_read_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = MMDetection(nn.Conv2d).published()
    imported = import_weights({"model": state, "meta": {"config": text}}, "w.pth")
    assert imported.facts.shown["MODEL.RESNETS.NORM"] == "GN"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("version", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_torchvision_mask_rcnn(version, tmp_path):
    torch.manual_seed(0)
    theirs = trained(
        torchvision.models.get_model(version, weights=None, weights_backbone=None, num_classes=91)
    )
    path = str(tmp_path / "theirs.pth")
    torch.save(theirs.state_dict(), path)
    imported = import_weights(theirs.state_dict(), path)
    assert not imported.left_out
    cfg = adopted(imported)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIAlign"
    ours = build_model(cfg).eval()
    checkpointer = Checkpointer(ours, cfg=cfg)
    checkpointer.load(path)
    assert set(checkpointer.report.matched) == set(ours.state_dict())
    assert not checkpointer.report.unexpected
    anchors, classes = checkpointer.report.warnings
    assert "half a pixel" in anchors and "91 classes" in classes

    coco = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    kept = [i for i, name in enumerate(coco) if name not in ("N/A", "__background__")]
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        want, got = theirs.backbone(x), ours.backbone(x)
        for a, b in zip(want.values(), got.values(), strict=True):
            torch.testing.assert_close(b, a, **tolerance(a))
        head = ours.proposal_generator.rpn_head(list(got.values()))
        for one, other in zip(theirs.rpn.head(list(want.values())), head, strict=True):
            for a, b in zip(one, other, strict=True):
                torch.testing.assert_close(b, a, **tolerance(a))
        rois, heads = torch.randn(2, 256, 7, 7), theirs.roi_heads
        scores, deltas = heads.box_predictor(heads.box_head(rois))
        a, b = ours.roi_heads.box_predictor(ours.roi_heads.box_head(rois))
        torch.testing.assert_close(a, scores[:, [*kept, 0]], **tolerance(scores))
        wanted = deltas.reshape(2, 91, 4)[:, kept].flatten(1)
        torch.testing.assert_close(b, wanted, **tolerance(deltas))
        rois = torch.randn(1, 256, 14, 14)
        masks = heads.mask_predictor(heads.mask_head(rois))
        torch.testing.assert_close(
            ours.roi_heads.mask_head.layers(rois), masks[:, kept], **tolerance(masks)
        )


def test_torchvision_s_first_weights_have_no_eps():
    """torchvision sets the eps of their frozen norms to 0, as detectron2 cannot."""
    model = torchvision.models.get_model(
        "maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, num_classes=3
    )
    key = "backbone.bottom_up.stem.conv1.norm.running_var"
    plain = import_weights(model.state_dict(), "w.pth").model[key]
    published = import_weights(model.state_dict(), "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")
    torch.testing.assert_close(published.model[key] + 1e-5, plain)
    assert len(published.model["roi_heads.box_predictor.cls_score.bias"]) == 3
    assert len(published.notes) == 1


def odd_tensors():
    return [torch.tensor(1.0), torch.ones(0), torch.ones(3, dtype=torch.bool), torch.ones(2, 2),
            torch.ones(4, dtype=torch.int64), torch.ones(0, 0, 0, 0)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["mmdetection", "torchvision", "resnet", "detectron2"])
def test_odd_shapes_never_end_in_anything_but_a_sentence(layout):
    """Anyone may have written the file: one to three of its tensors are of another kind."""
    torch.manual_seed(0)
    state = {
        "mmdetection": lambda: MMDetection(nn.Conv2d).published(),
        "torchvision": lambda: torchvision.models.get_model(
            "maskrcnn_resnet50_fpn", weights=None, weights_backbone=None
        ).state_dict(),
        "resnet": lambda: torchvision.models.resnet18().state_dict(),
        "detectron2": lambda: import_weights(MMDetection(nn.Conv2d).published(), "w.pth").model,
    }[layout]()
    cfg = load_config("coco/mask_rcnn_R_50_FPN_1x.yaml")
    rng, names = random.Random(0), list(state)
    for _ in range(150):
        damaged = dict(state)
        # The last tensors and the stem's are those that something is read from.
        for name in rng.sample(names[:8] + names[-24:] + rng.sample(names, 8), rng.randint(1, 3)):
            damaged[name] = rng.choice(odd_tensors())
        try:
            imported = import_weights(damaged, "w.pth")
            required_config(imported.facts, imported.model)
            check_weights(cfg, imported, "w.pth")
        except NormdetError as error:
            assert "w.pth" in str(error) and "\n" not in str(error)
