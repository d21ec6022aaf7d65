"""`normdet export`: files that find what the model finds, on real images where there are some."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import heatmaps_to_keypoints

from normdet.cli import main
from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.export import FORMATS
from normdet.export.keypoints import keypoints_of
from normdet.export.stock import stock_config
from normdet.layers import NormLayer

from .recorder import need_recorder

SMALL = ["MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
         "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]  # fmt: skip


SHALLOW = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
# A quarter of RetinaNet's: for photographs of 192 pixels, not 800.
ANCHORS = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"]
# Networks whose files must find in photographs of two sizes what the network finds.
DETECTORS = {
    "mask": "coco/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoints": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "coco/retinanet_R_50_FPN_1x.yaml",
}


@pytest.fixture
def exported(tmp_path, real_data, capsys):
    """Run the command on a small random model; its exit code, its output, and the file."""

    def run(norm, kind, suffix, *more, config="quickstart/gn.yaml", photographs=False, side=128,
            opts=()):  # fmt: skip
        opts = [*SMALL, *(SHALLOW if photographs else ()), "INPUT.MIN_SIZE_TEST", str(side), *opts]
        torch.manual_seed(0)
        cfg = load_config(config, ["MODEL.DEVICE", "cpu", *opts], norm=norm)
        model = build_model(cfg)
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
        weights, out = tmp_path / "weights.pth", tmp_path / f"model{suffix}"
        torch.save({"model": model.state_dict()}, weights)
        folder, count = ("coco/val2017", 2) if photographs else ("nuclei/images", 1)
        flags = ["--config-file", config, "--norm", norm, "--format", kind, "--out", str(out)]
        for image in sorted((real_data / folder).iterdir())[:count]:
            flags += ["--images", str(image)]
        code = main(["export", *flags, *more, "MODEL.WEIGHTS", str(weights), *opts])
        return code, capsys.readouterr(), out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN+WS", "FRN+TLU", "BN"])
@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("torchscript", ".ts")])
def test_a_whole_detector(exported, norm, kind, suffix):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    code, said, out = exported(norm, kind, suffix)
    assert code == 0, said.out
    assert "True" in said.out and out.stat().st_size > 1e6
    card = out.with_name(out.name + ".md").read_text()
    assert "scores off" in card and str(out.parent) not in card


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN", "FRN+TLU", "FrozenBN"])
@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("pt2", ".pt2")])
def test_a_backbone_by_torchs_own_exporters(exported, norm, kind, suffix):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    code, said, out = exported(norm, kind, suffix, "--part", "backbone")
    assert code == 0, said.out
    if kind == "pt2":
        graph = torch.export.load(str(out)).graph
        assert not [node for node in graph.nodes if "normdet" in str(node.target)]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["GN", "GN+WS", "BN", "FrozenBN"])
def test_stock_loads_where_normdet_is_never_imported(exported, norm):
    code, said, out = exported(norm, "stock", ".yaml")
    assert code == 0, said.out
    assert "NORMDET" not in out.read_text() and "Normdet" not in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "kind", "size"),
    [(name, "onnx", size) for name in DETECTORS for size in ("any size", "--fixed-size")]
    + [("keypoints", "torchscript", "any size")]
    + [(name, "pt2", "any size") for name in ("mask", "retinanet")],
)
def test_photographs_of_other_sizes(exported, detector, kind, size):
    """Boxes to 1e-3 pixels and scores to 1e-4, which are the command's own bounds."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    if kind == "pt2":
        need_recorder()
    suffix = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2"}[kind]
    fixed = [size] if size == "--fixed-size" else []
    code, said, out = exported(
        "FRN+TLU", kind, suffix, *fixed, config=DETECTORS[detector], photographs=True,
        side=192 if kind == "pt2" else 128,  # three quarters of it leave RetinaNet's p7 two rows
        opts=ANCHORS if (detector, kind) == ("retinanet", "pt2") else (),
    )  # fmt: skip
    assert code == 0, said.out
    # Two photographs, each at its size and at three quarters of it.
    rows = [line for line in said.out.splitlines() if " x " in line]
    assert len(rows) == (1 if fixed else 4) and all("True" in row for row in rows)
    assert "opset 18" in out.with_name(out.name + ".md").read_text() or kind != "onnx"


def test_keypoints_are_found_as_detectron2_finds_them():
    """Also in boxes of less than a pixel, and where there are none."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 17, 28, 28, generator=generator)
    corners, sides = (torch.rand(5, 2, generator=generator) * most for most in (100, 60))
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes[0, 2:] = boxes[0, :2] + 0.3
    for some in (slice(0, 5), slice(0, 0)):
        want = heatmaps_to_keypoints(maps[some], boxes[some])
        torch.testing.assert_close(keypoints_of(maps[some], boxes[some]), want)


@pytest.mark.parametrize(
    ("opts", "norm", "says"),
    [
        ([], "FRN+TLU", "MODEL.RESNETS.NORM is 'FRN\\+TLU'"),
        ([], "LN", "has no LN"),
        (["MODEL.NORMDET.GN.EPS", 1e-3], "GN", "GN with EPS"),
        (["MODEL.NORMDET.RPN_HEAD_NORM", "GN"], "GN", "RPN_HEAD_NORM.*no norm in this part"),
    ],
)
def test_a_norm_that_detectron2_lacks_is_refused(opts, norm, says):
    cfg = load_config("quickstart/gn.yaml", opts, norm=norm)
    with pytest.raises(NormdetError, match=says):
        stock_config(cfg, "")


def test_a_file_with_another_ending_is_refused(tmp_path):
    said = main(["export", "--config-file", "quickstart/gn.yaml", "--format", "onnx", "--out",
                 str(tmp_path / "model.pt")])  # fmt: skip
    assert said == 2


def test_keypoints_are_refused_as_pt2(tmp_path, monkeypatch):
    class Whole:
        part, outputs = "detector", ("pred_keypoints",)

    monkeypatch.setattr(torch.export, "export", _recorder)
    with pytest.raises(NormdetError, match="cannot record keypoints.*--part backbone"):
        FORMATS["pt2"][0](Whole(), torch.rand(3, 8, 8), tmp_path / "x.pt2", True)


def _recorder(*args, prefer_deferred_runtime_asserts_over_guards=False, **kwargs):
    raise AssertionError("nothing may be recorded")


def test_an_image_of_one_row_is_refused_as_pt2_of_any_size(tmp_path, monkeypatch):
    class Whole:
        part, outputs, least = "detector", (), 129

    monkeypatch.setattr(torch.export, "export", _recorder)
    with pytest.raises(NormdetError, match="at least 129, or --fixed-size"):
        FORMATS["pt2"][0](Whole(), torch.rand(3, 128, 256), tmp_path / "x.pt2", True)


def test_a_torch_that_records_no_detector_says_so(tmp_path, monkeypatch):
    class Whole:
        part, outputs = "detector", ()

    monkeypatch.setattr(torch.export, "export", lambda module, args: None)
    with pytest.raises(NormdetError, match="cannot record a whole detector.*--part backbone"):
        FORMATS["pt2"][0](Whole(), torch.rand(3, 8, 8), tmp_path / "x.pt2", True)


@pytest.mark.slow
def test_torch_export_leaves_standard_operators():
    """Without any preparation: what a user's own `torch.export` of a norm records."""
    from normdet.options import parse

    for option in ("GN", "FRN+TLU", "FrozenBN", "SwitchNorm", "GN+TLU"):
        norm = parse(option).build_norm(32, activate=True).eval()
        assert isinstance(norm, NormLayer)
        program = torch.export.export(norm, (torch.rand(2, 32, 5, 5),))
        assert not [n for n in program.graph.nodes if "normdet" in str(n.target)], option
