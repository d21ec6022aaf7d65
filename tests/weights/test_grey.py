"""A colour network's weights on one grey channel: on grey images the same function."""

import torch
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.weights import Checkpointer, save_file


def config(*opts):
    small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return load_config("quickstart/gn.yaml", [*small, *opts])


def test_a_grey_image_gives_the_same_features_and_the_report_says_so(tmp_path):
    colour = build_model(config()).eval()
    save_file({"model": colour.state_dict()}, tmp_path / "colour.pth")
    cfg = config(
        "INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[40.0]", "MODEL.PIXEL_STD", "[40.0]"
    )  # the three of the colour model are 40 too
    grey = build_model(cfg).eval()
    checkpointer = Checkpointer(grey, cfg=cfg)
    checkpointer.load(str(tmp_path / "colour.pth"))
    (warning,) = [w for w in checkpointer.report.warnings if "summed" in w]
    assert "stem.conv1.weight is summed over its three colours" in warning
    assert not checkpointer.report.reinitialized and not checkpointer.report.missing
    image = torch.randint(0, 256, (1, 64, 64)).float()
    with torch.no_grad():
        one = grey.backbone(grey.preprocess_image([{"image": image}]).tensor)
        three = colour.backbone(
            colour.preprocess_image([{"image": image.expand(3, -1, -1)}]).tensor
        )
    for level, features in one.items():
        torch.testing.assert_close(features, three[level], rtol=1e-4, atol=1e-4)


def test_a_colour_model_keeps_its_stem(tmp_path):
    model = build_model(config())
    save_file({"model": model.state_dict()}, tmp_path / "colour.pth")
    other = build_model(config())
    checkpointer = Checkpointer(other)
    checkpointer.load(str(tmp_path / "colour.pth"))
    assert not checkpointer.report.warnings
    key = "backbone.bottom_up.stem.conv1.weight"
    assert torch.equal(model.state_dict()[key], other.state_dict()[key])
