"""torchvision's detectors: equal outputs of every part."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_model

from normdet.weights import Checkpointer, import_weights
from tests.weights.networks import adopted, tolerance, trained


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
