"""A backbone with a classifier: its loss, its scores, and where its branches start."""

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from normdet.config import load_config


def config(*opts):
    small = [
        "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "8",
    ]  # fmt: skip
    return load_config("pretrain/gn.yaml", [*small, *opts])


def test_the_loss_is_cross_entropy_of_the_pooled_features():
    cfg = config("PRETRAIN.LABEL_SMOOTHING", "0.1")
    torch.manual_seed(0)
    model = build_model(cfg).train()
    images = torch.randint(0, 256, (2, 3, 32, 32))
    batch = [{"image": image, "label": label} for label, image in enumerate(images)]
    pixels = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixels)
    features = model.backbone.bottom_up((images - mean) / std)["res5"]
    scores = features.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    spread = torch.full((2, 2), 0.05) + 0.9 * torch.eye(2)
    expected = -(spread * F.log_softmax(scores, 1)).sum(1).mean()
    torch.testing.assert_close(model(batch)["loss_cls"], expected)
    outputs = model.eval()(batch)
    torch.testing.assert_close(torch.stack([o["scores"] for o in outputs]), scores)


def test_residual_branches_start_at_zero():
    model = build_model(config())
    block = model.backbone.bottom_up.res2[0]
    assert not block.conv3.norm.weight.any() and block.conv1.norm.weight.all()
