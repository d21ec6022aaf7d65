"""Other libraries' ResNets load under their own names and compute the same."""

import pickle
import random

import pytest
import timm
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone
from torch import nn

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.weights import Checkpointer, check_weights, files, import_weights, required_config
from normdet.weights.importers.layout import CLASSIFIER
from tests.weights.networks import (
    MMDetection,
    group_norm,
    standardize,
    stride_in_1x1,
    trained,
)


def backbone(norm: str, depth: int = 50, *opts) -> Backbone:
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.STRIDE_IN_1X1", False, *opts]
    opts += ["MODEL.RESNETS.DEPTH", depth, "MODEL.BACKBONE.NAME", "build_normdet_resnet_backbone"]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256]
    cfg = load_config("coco/Base-MaskRCNN-FPN.yaml", opts, norm=norm)
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


def features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    activation = network.relu if hasattr(network, "relu") else network.act1
    x = network.maxpool(activation(network.bn1(network.conv1(x))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(network, name)(x)
    return x


def assert_same(theirs: nn.Module, ours: Backbone) -> None:
    """Equal res5 for equal input, in double precision."""
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        want, got = features(theirs.double(), x), ours.double()(x)["res5"]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


def assert_all_loaded(checkpointer: Checkpointer) -> None:
    report = checkpointer.report
    assert not report.missing and not report.unexpected and not report.reinitialized


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "norm"), [(50, "FrozenBN"), (50, "GN"), (18, "BN")])
def test_torchvision_resnets(depth, norm, tmp_path):
    torch.manual_seed(0)
    kwargs = {} if norm != "GN" else {"norm_layer": group_norm}
    theirs = trained(torchvision.models.get_model(f"resnet{depth}", weights=None, **kwargs))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = backbone(norm, depth)
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "theirs.pth"))
    assert_all_loaded(checkpointer)
    assert set(checkpointer.report.left_out) == {"fc.weight", "fc.bias"}
    assert_same(theirs, ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "opts"),
    [
        ("resnet18", "BN", {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}),
        ("resnet50_gn", "GN", {}),
        ("resnext50_32x4d", "BN", {"MODEL.RESNETS.NUM_GROUPS": 32, "WIDTH": 4}),
    ],
)
def test_timm_resnets(name, norm, opts, tmp_path):
    torch.manual_seed(0)
    theirs = trained(timm.create_model(name, pretrained=False))
    torch.save({"state_dict": theirs.state_dict(), "arch": name}, tmp_path / "theirs.pth")
    imported = import_weights(theirs.state_dict(), "theirs.pth")
    keys = required_config(imported.facts, imported.model)
    keys["WIDTH"] = keys.get("MODEL.RESNETS.WIDTH_PER_GROUP")
    assert opts.items() <= keys.items()
    assert norm in keys["MODEL.RESNETS.NORM"]
    more = [
        item for key in ("NUM_GROUPS", "WIDTH_PER_GROUP") if f"MODEL.RESNETS.{key}" in keys
        for item in (f"MODEL.RESNETS.{key}", keys[f"MODEL.RESNETS.{key}"])
    ]  # fmt: skip
    ours = backbone(norm, keys["MODEL.RESNETS.DEPTH"], *more)
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "theirs.pth"))
    assert_all_loaded(checkpointer)
    assert_same(theirs, ours)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18d", "a stem of several convolutions"),
        ("resnet26", "stages of 2, 2, 2, 2 blocks, which is none of detectron2's"),
        ("seresnet18", "squeeze and excitation"),
        ("skresnet18", "attention in its convolutions"),
        ("resnetblur18", "resnetblur18, with anti-aliased pooling"),
    ],
)
def test_what_detectron2_cannot_build_is_refused(name, reason, tmp_path):
    theirs = timm.create_model(name, pretrained=False)
    torch.save({"state_dict": theirs.state_dict(), "arch": name}, tmp_path / "theirs.pth")
    ours = backbone("BN", 18)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(NormdetError, match=rf"theirs\.pth is a .*{reason}.*nothing is loaded"):
        Checkpointer(ours).load(str(tmp_path / "theirs.pth"))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_average_pooling_in_shortcuts_is_refused():
    state = torchvision.models.resnet18().state_dict()
    moved = {key.replace("downsample.1", "downsample.2"): value for key, value in state.items()}
    with pytest.raises(NormdetError, match="average pooling in its shortcuts"):
        import_weights(moved, "w.pth")


@pytest.mark.slow
@pytest.mark.parametrize("names", ["jhu", "mmcv"])
def test_weight_standardization_s_authors_and_mmcv(names, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "check_name", lambda path: None)  # a stand-in under a known name
    torch.manual_seed(0)
    theirs = trained(standardize(torchvision.models.resnet50(norm_layer=group_norm)))
    if names == "jhu":
        path = tmp_path / "R-50-GN-WS.pth.tar"
        state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    else:
        path = tmp_path / "resnet50_gn_ws-15beedd8.pth"
        state = {key.replace("bn", "gn"): value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, path)
    ours = backbone("GN+WS")
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(path))
    assert_all_loaded(checkpointer)
    imported = import_weights(state, str(path))
    keys = required_config(imported.facts, imported.model)
    assert keys["MODEL.RESNETS.NORM"] == "GN+WS" and keys["MODEL.NORMDET.WS.DIALECT"] == "jhu"
    assert keys["INPUT.FORMAT"] == "RGB" and keys["MODEL.RESNETS.STRIDE_IN_1X1"] is False
    assert_same(theirs, ours)
    if names == "jhu":  # the other dialect computes something else
        with pytest.raises(AssertionError):
            other = backbone("GN+WS", 50, "MODEL.NORMDET.WS.DIALECT", "timm")
            other.load_state_dict(ours.state_dict())
            assert_same(theirs, other)


def blobs(network: nn.Module, norm: str) -> dict:
    """A torchvision ResNet as Caffe2 writes it; batch statistics folded, as there."""
    names = {"conv1": "conv1", "bn1": "conv1_gn" if norm == "GN" else "res_conv1_bn"}
    for stage in range(1, 5):
        for i in range(len(network.get_submodule(f"layer{stage}"))):
            theirs, ours = f"layer{stage}.{i}", f"res{stage + 1}_{i}_branch"
            for n, branch in enumerate(("2a", "2b", "2c"), 1):
                names[f"{theirs}.conv{n}"] = ours + branch
                names[f"{theirs}.bn{n}"] = f"{ours}{branch}_{norm.lower()}"
            names[f"{theirs}.downsample.0"] = ours + "1"
            names[f"{theirs}.downsample.1"] = f"{ours}1_{norm.lower()}"
    written = {"pred_w": network.fc.weight, "pred_b": network.fc.bias}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            written[f"{names[name]}_w"] = module.weight
        elif isinstance(module, nn.GroupNorm):
            written |= {f"{names[name]}_s": module.weight, f"{names[name]}_b": module.bias}
        elif isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            bias = module.bias - module.running_mean * scale
            scale = scale * (1 + 1e-5) ** 0.5  # detectron2 takes them for a variance of 1, and eps
            written |= {f"{names[name]}_s": scale, f"{names[name]}_b": bias}
    return {key: value.detach().numpy().copy() for key, value in written.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "msra"), [("GN", False), ("BN", True)])
def test_caffe2_blobs(norm, msra, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(norm_layer=group_norm if norm == "GN" else None)
    theirs = trained(stride_in_1x1(theirs) if msra else theirs)
    state = blobs(theirs, norm)
    path = tmp_path / f"R-50{'' if msra else '-GN'}.pkl"
    path.write_bytes(pickle.dumps({"blobs": state} if msra else state, 2))
    option = "FrozenBN" if msra else "GN"
    ours = backbone(option, 50, "MODEL.RESNETS.STRIDE_IN_1X1", msra)
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(path))
    report = checkpointer.report
    assert not report.unexpected and not report.reinitialized
    assert set(report.left_out) == {"pred_w", "pred_b"}
    assert all("running_" in key for key in report.missing)  # folded
    imported = import_weights({k: torch.from_numpy(v) for k, v in state.items()}, str(path))
    keys = required_config(imported.facts, imported.model)
    assert imported.facts.folded == msra and keys["MODEL.RESNETS.NORM"] == option
    assert keys["MODEL.RESNETS.STRIDE_IN_1X1"] == msra and keys["INPUT.FORMAT"] == "BGR"
    assert_same(theirs, ours)


@pytest.mark.slow
def test_torchvision_s_file_as_detectron2_converts_it(tmp_path):
    torch.manual_seed(0)
    theirs = trained(torchvision.models.resnet50())
    renamed = {}
    for key, value in theirs.state_dict().items():
        key = key if "layer" in key else f"stem.{key}"
        for n in (1, 2, 3, 4):
            key = key.replace(f"layer{n}", f"res{n + 1}").replace(f"bn{n}", f"conv{n}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key] = value.numpy()
    said = {"model": renamed, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(said))
    ours = backbone("FrozenBN")
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "r50.pkl"))
    assert_all_loaded(checkpointer)
    assert set(checkpointer.report.left_out) == {"stem.fc.weight", "stem.fc.bias"}
    assert_same(theirs, ours)


@pytest.mark.slow
def test_mmcv_names_in_a_state_dict_entry(tmp_path):
    theirs = torchvision.models.resnet50(norm_layer=group_norm)
    state = {k.replace("bn", "gn"): v for k, v in theirs.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "mm.pth")
    ours = backbone("GN")
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(tmp_path / "mm.pth"))
    assert not checkpointer.report.missing
    assert torch.equal(ours.res3[0].shortcut.norm.bias, theirs.layer2[0].downsample[1].bias)


def test_half_precision_is_read_as_single(tmp_path):
    """Numbers computed from a weight on loading, such as adaptive WS's gain, are then exact."""
    state = {k: v.half() for k, v in torchvision.models.resnet18().state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    ours = backbone("BN+AWS", 18)
    Checkpointer(ours).load(str(tmp_path / "half.pth"))
    conv = ours.res2[0].conv1
    torch.testing.assert_close(
        conv.weight, state["layer1.0.conv1.weight"].float(), rtol=1e-5, atol=1e-6
    )


def test_a_real_imagenet_resnet_names_what_it_loaded(real_data):
    path = real_data / "weights" / "resnet50-imagenet.pth"
    ours = backbone("FrozenBN", 50, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    checkpointer = Checkpointer(ours)
    checkpointer.load(str(path))
    assert len(checkpointer.report.matched) == len(ours.state_dict())
    theirs = stride_in_1x1(torchvision.models.resnet50()).eval()
    state = torch.load(path, weights_only=True)
    theirs.load_state_dict(state)
    assert_same(theirs, ours)
    # Its stem's statistics are of pixels of 0 to 255: its names are torchvision's, not its input.
    imported = import_weights(state, str(path))
    keys = required_config(imported.facts, imported.model)
    assert keys["MODEL.PIXEL_STD"] == [1.0, 1.0, 1.0] and keys["INPUT.FORMAT"] == "BGR"
    assert keys["MODEL.RESNETS.STRIDE_IN_1X1"] is True
    assert "MODEL.RESNETS.STRIDE_IN_1X1" in imported.facts.assumed


@pytest.mark.parametrize("layout", ["mmdetection", "torchvision"])
def test_omitted_tensors_have_the_file_s_names(layout):
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


def odd_tensors():
    return [torch.tensor(1.0), torch.ones(0), torch.ones(3, dtype=torch.bool), torch.ones(2, 2),
            torch.ones(4, dtype=torch.int64), torch.ones(0, 0, 0, 0)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["mmdetection", "torchvision", "resnet", "detectron2"])
def test_odd_shapes_never_end_in_anything_but_a_sentence(layout):
    """Anyone may have written the file, so one to three of its tensors are of another kind."""
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
        # Facts are read from the last tensors and the stem's.
        for name in rng.sample(names[:8] + names[-24:] + rng.sample(names, 8), rng.randint(1, 3)):
            damaged[name] = rng.choice(odd_tensors())
        try:
            imported = import_weights(damaged, "w.pth")
            required_config(imported.facts, imported.model)
            check_weights(cfg, imported, "w.pth")
        except NormdetError as error:
            assert "w.pth" in str(error) and "\n" not in str(error)
