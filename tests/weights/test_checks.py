"""A config that would misuse its weights is refused with the key and the way out."""

import pytest
import torch
from detectron2.config import get_cfg

from normdet.errors import NormdetError
from normdet.keys import add_normdet_config
from normdet.options import parse
from normdet.weights import check_weights, import_weights, required_config
from normdet.weights.checks import describe

LAYER = "backbone.bottom_up.res2.0.conv1"
RGB = ("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53])
TORCHVISION = (*RGB, "MODEL.PIXEL_STD", [58.395, 57.12, 57.375])
ZOO = "detectron2://ImageNetPretrained/"


def config(norm="FrozenBN", stride=True, *options):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.STRIDE_IN_1X1", stride, *options])
    cfg.MODEL.RESNETS.NORM = norm
    return cfg


def weights(mean=None, variance=None, layer=LAYER, scale=2.0):
    affine = torch.full((2,), scale)
    state = {f"{layer}.weight": torch.ones(2, 2, 1, 1), f"{layer}.norm.weight": affine}
    if mean is not None:
        state[f"{layer}.norm.running_mean"] = torch.full((2,), mean)
        state[f"{layer}.norm.running_var"] = torch.full((2,), variance)
    return state


BN = weights(0.5, 2.0)


@pytest.mark.parametrize(
    ("source", "stride", "options"),
    [
        (f"{ZOO}MSRA/R-50.pkl", True, ()),
        (f"{ZOO}MSRA/R-101.pkl", True, ()),
        ("catalog://ImageNetPretrained/FAIR/R-50-GN", False, ()),
        ("/data/R-101-GN.pkl", False, ()),
        (f"{ZOO}torchvision/R-50.pkl", False, TORCHVISION),
        (f"{ZOO}FAIR/X-101-32x8d.pkl", False, ("MODEL.PIXEL_STD", [57.375, 57.12, 58.395])),
        ("detectron2://COCO-Detection/retinanet_R_50_FPN_1x/1/model_final_b.pkl", True, ()),
        ("detectron2://COCO-Detection/faster_rcnn_R_50_C4_1x/1/model_final_b.pkl", True, ()),
        ("detectron2://COCO-PanopticSegmentation/panoptic_fpn_R_50_1x/1/m_d.pkl", True, ()),
        ("detectron2://Misc/scratch_mask_rcnn_R_50_FPN_3x_gn/1/model_final_d.pkl", False, ()),
    ],
)
def test_stride_of_published_weights(source, stride, options):
    check_weights(config("FrozenBN", stride, *options), BN, source)
    wrong = config("FrozenBN", not stride, *options)
    with pytest.raises(NormdetError, match=f'set MODEL.RESNETS.STRIDE_IN_1X1 "{stride}"$'):
        check_weights(wrong, BN, source)
    # Basic blocks have no such convolution.
    wrong.MODEL.RESNETS.DEPTH = 18
    check_weights(wrong, BN, source)


@pytest.mark.parametrize(
    "source",
    [
        "R-50.pkl",
        "/data/torchvision/R-50.pth",
        "out/MSRA/model.pth",
        "detectron2://Misc/scratch_mask_rcnn_R_50_FPN_9x_gn/1/m.pkl",  # with a std of its own
    ],
)
def test_nothing_is_claimed_of_unknown_files(source):
    for stride in (True, False):
        assert check_weights(config("BN", stride), BN, source) == []


def test_author_in_the_file_tells_what_its_name_does_not():
    checkpoint = {"model": BN, "__author__": "torchvision"}
    check_weights(config("FrozenBN", False, *TORCHVISION), checkpoint, "R-50.pkl")
    with pytest.raises(NormdetError) as info:
        check_weights(config("FrozenBN", False), checkpoint, "R-50.pkl")
    assert str(info.value) == (
        "R-50.pkl was trained with INPUT.FORMAT RGB, MODEL.PIXEL_STD [58.395, 57.12, 57.375], "
        "the config has INPUT.FORMAT BGR, MODEL.PIXEL_STD [1.0, 1.0, 1.0]: set "
        'INPUT.FORMAT "RGB" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]" '
        'MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]"'
    )


def test_statistics_of_own_images_are_no_error():
    own = (*TORCHVISION, "MODEL.PIXEL_MEAN", [40.0, 40.0, 40.0], "MODEL.PIXEL_STD", [30.0] * 3)
    checkpoint = {"model": BN, "__author__": "torchvision"}
    (warning,) = check_weights(config("FrozenBN", False, *own), checkpoint, "R-50.pkl")
    assert (
        "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], the config has [40.0, 40.0, 40.0]" in warning
    )
    gray = ("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [0.0], "MODEL.PIXEL_STD", [1.0])
    check_weights(config("FrozenBN", True, *gray), BN, f"{ZOO}MSRA/R-50.pkl")


@pytest.mark.parametrize(
    ("source", "norm", "way_out"),
    [
        ("jhu/R-50-GN-WS.pth", "GN", "GN+WS"),
        ("resnet50_gn_ws-15beedd8.pth", "FRN+TLU", "FRN+TLU+WS"),
        ("mask_rcnn_r50_fpn_gn_ws-all_2x_coco.pth", "FrozenBN", "FrozenBN+WS"),
        (f"{ZOO}MSRA/R-50.pkl", "GN+WS", "GN"),
        ("R-50-GN.pkl", "FRN+TLU+WS", "FRN+TLU"),
    ],
)
def test_weight_standardization_must_agree(source, norm, way_out):
    cfg = config(norm, "MSRA" in source, *(TORCHVISION if "ws" in source.lower() else ()))
    with pytest.raises(NormdetError, match="weight standardization") as info:
        check_weights(cfg, weights(), source)
    assert str(info.value).endswith(f"set MODEL.RESNETS.NORM {way_out}")
    assert str(parse(way_out)) == way_out
    cfg.MODEL.RESNETS.NORM = way_out
    check_weights(cfg, weights(), source)


def with_settings(theirs: str, ours: str):
    """A config for `ours` and a checkpoint of ours that was trained under `theirs`."""
    return config(ours), {"model": weights(), "normdet": describe(config(theirs))}


@pytest.mark.parametrize("method", ["AWS", "WN"])
def test_methods_that_keep_a_plain_weights_function_take_it(method):
    """Adaptive WS is made for weights that were trained without WS."""
    assert check_weights(*with_settings("GN", f"GN+{method}"), "m.pth") == []
    (warning,) = check_weights(config(f"GN+{method}", True), BN, f"{ZOO}MSRA/R-50.pkl")
    assert "trained with BN" in warning
    assert check_weights(config(f"BN+{method}"), BN, f"{ZOO}MSRA/R-50.pkl") == []
    assert check_weights(config(f"BN+{method}"), BN, "mine.pth") == []


def test_the_scale_that_spectral_normalization_loses_is_a_warning():
    (warning,) = check_weights(*with_settings("GN", "GN+SpectralNorm"), "m.pth")
    assert "m.pth was trained with GN and MODEL.RESNETS.NORM is GN+SpectralNorm" in warning


@pytest.mark.parametrize(
    ("theirs", "ours", "way_out"),
    [
        ("GN+AWS", "GN", "GN+AWS"),
        ("GN+AWS", "GN+WS", "GN+AWS"),
        ("GN+WS", "GN+AWS", "GN+WS"),
        ("FRN+TLU+WN", "FRN+TLU", "FRN+TLU+WN"),
        ("GN+WN", "GN+AWS", "GN+WN"),
        ("GN+SpectralNorm", "BN", "BN+SpectralNorm"),
    ],
)
def test_weights_of_a_method_mean_nothing_without_it(theirs, ours, way_out):
    cfg, checkpoint = with_settings(theirs, ours)
    with pytest.raises(NormdetError, match="m.pth was trained with ") as info:
        check_weights(cfg, checkpoint, "m.pth")
    assert str(info.value).endswith(
        f"MODEL.RESNETS.NORM is {ours!r}: its weights mean nothing there; "
        f"set MODEL.RESNETS.NORM {way_out}"
    )
    cfg, checkpoint = with_settings(theirs, theirs)
    assert check_weights(cfg, checkpoint, "m.pth") == []


def test_unknown_standardization_is_a_warning():
    (warning,) = check_weights(config("BN+WS"), BN, "mine.pth")
    assert "nothing tells whether mine.pth was trained with WS" in warning


def test_each_part_of_our_own_checkpoint_is_compared():
    trained = config("GN")
    trained.MODEL.ROI_MASK_HEAD.NORM = "GN+WS"
    state = {**weights(), "roi_heads.mask_head.mask_fcn1.weight": torch.ones(1)}
    checkpoint = {"model": state, "normdet": describe(trained)}
    assert check_weights(trained, checkpoint, "m.pth") == []
    asked = config("GN")
    with pytest.raises(NormdetError, match=r"ROI_MASK_HEAD\.NORM is '': ") as info:
        check_weights(asked, checkpoint, "m.pth")
    key, advised = str(info.value).rpartition("set ")[2].split()
    assert (key, str(parse(advised))) == ("MODEL.ROI_MASK_HEAD.NORM", "GN+WS")
    asked.MODEL.ROI_MASK_HEAD.NORM = advised
    assert check_weights(asked, checkpoint, "m.pth") == []
    asked.MODEL.ROI_MASK_HEAD.NORM = ""
    del state["roi_heads.mask_head.mask_fcn1.weight"]  # a backbone alone has no such part
    assert check_weights(asked, checkpoint, "m.pth") == []
    asked.MODEL.RESNETS.STRIDE_IN_1X1 = False
    with pytest.raises(NormdetError, match="STRIDE_IN_1X1"):
        check_weights(asked, checkpoint, "m.pth")


def test_dialects_of_weight_standardization_must_agree():
    cfg = config("GN+WS")
    said = describe(cfg)
    said["settings"]["MODEL.NORMDET.WS.DIALECT"] = "timm"
    cfg.MODEL.NORMDET = type(cfg)({"WS": {"DIALECT": "jhu"}})
    with pytest.raises(NormdetError, match=r"set MODEL\.NORMDET\.WS\.DIALECT timm$"):
        check_weights(cfg, {"model": weights(), "normdet": said}, "m.pth")


CAFFE2 = {
    "conv1_w": torch.ones(1), "res_conv1_bn_s": torch.ones(1), "res_conv1_bn_b": torch.ones(1),
}  # fmt: skip
UNFOLDED = CAFFE2 | {"res_conv1_bn_running_var": torch.ones(1) * 2}
UNTRAINED = weights(0.0, 1.0, scale=1.0)
HEAD_ONLY = weights(0.0, 1.0, "roi_heads.box_head.conv1")


@pytest.mark.parametrize("state", [CAFFE2, weights(), weights(0.0, 1 - 1e-5)])
def test_folded_statistics_stay_frozen(state):
    for norm in ("BN", "SyncBN", "naiveSyncBN"):
        with pytest.raises(NormdetError, match=r"folded .* set MODEL\.RESNETS\.NORM FrozenBN"):
            check_weights(config(norm), state, "w.pkl")
    assert check_weights(config("FrozenBN"), state, "w.pkl") == []
    all_frozen = config("BN", True, "MODEL.BACKBONE.FREEZE_AT", 5)
    assert check_weights(all_frozen, state, "w.pkl") == []


@pytest.mark.parametrize("state", [BN, UNFOLDED, UNTRAINED, {}])
def test_statistics_that_are_there_may_be_trained(state):
    assert check_weights(config("SyncBN"), state, "w.pkl") == []


def test_a_head_s_norm_is_compared_as_far_as_it_shows():
    cfg = config("SyncBN")
    (warning,) = check_weights(cfg, HEAD_ONLY, "w.pkl")
    assert "trained with BN and MODEL.ROI_BOX_HEAD.NORM is no norm" in warning
    cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
    assert check_weights(cfg, HEAD_ONLY, "w.pkl") == []


@pytest.mark.parametrize("norm", ["SyncBN", "BRN", "EvalNorm", "BIN"])
def test_norms_that_start_as_batch_norm_keep_its_function(norm):
    assert check_weights(config(norm), BN, "w.pth") == []


@pytest.mark.parametrize("norm", ["GN", "FRN+TLU", "LN", "IN", "SwitchNorm", "InPlaceABN"])
def test_batch_statistics_lost_by_another_norm_are_a_warning(norm):
    (warning,) = check_weights(config(norm), BN, "w.pth")
    assert f"w.pth was trained with BN and MODEL.RESNETS.NORM is {norm}" in warning
    assert "function is lost" in warning


def test_norm_of_group_norm_weights():
    caffe2 = {"conv1_w": torch.ones(1), "conv1_gn_s": torch.ones(1)}
    assert check_weights(config("GN", False), caffe2, "R-50-GN.pkl") == []
    (warning,) = check_weights(config("BN", False), caffe2, "R-50-GN.pkl")
    assert "trained with GN" in warning


def torchvision_names(gain=1.0, **extra):
    """A stem whose statistics are of pixels multiplied by `gain`."""
    weight = torch.randn(64, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    variance = 4.5 * gain**2 * weight.flatten(1).square().sum(1)
    statistics = {"bn1.running_mean": torch.ones(64), "bn1.running_var": variance}
    layer1 = {"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}
    return {"conv1.weight": weight, "bn1.weight": torch.ones(64), **statistics, **layer1, **extra}


def test_names_alone_do_not_overrule_the_config():
    """torchvision's names show neither stride nor channel order; the file's name shows nothing."""
    assert check_weights(config("BN", False, *TORCHVISION), torchvision_names(), "w.pth") == []
    own = (*TORCHVISION, "INPUT.FORMAT", "BGR")
    (warning,) = check_weights(config("BN", True, *own), torchvision_names(), "w.pth")
    assert (
        "INPUT.FORMAT BGR, MODEL.RESNETS.STRIDE_IN_1X1 True; files of its kind usually" in warning
    )
    assert 'INPUT.FORMAT "RGB" MODEL.RESNETS.STRIDE_IN_1X1 "False"' in warning


def test_the_scale_of_pixels_shows_in_the_stem():
    with pytest.raises(NormdetError, match=r"trained with MODEL.PIXEL_STD \[58"):
        check_weights(config("BN", False), torchvision_names(), "w.pth")
    raw = torchvision_names(58.0)
    with pytest.raises(NormdetError, match=r"trained with MODEL.PIXEL_STD \[1\.0"):
        check_weights(config("BN", False, *TORCHVISION), raw, "w.pth")
    assert check_weights(config("BN"), raw, "w.pth") == []
    # Divided by 255 alone: not torchvision's scale, but not raw either.
    (warning,) = check_weights(
        config("BN", False, *TORCHVISION, "MODEL.PIXEL_STD", [255.0] * 3), torchvision_names(), "w"
    )
    assert "is used with MODEL.PIXEL_STD [255.0" in warning
    # The file's own statement counts more than what is usual.
    said = {"model": raw, "normdet": describe(config("BN", False))}
    with pytest.raises(NormdetError, match=r'set MODEL.RESNETS.STRIDE_IN_1X1 "False"$'):
        check_weights(config("BN"), said, "w.pth")


DEEP = [1400.0, 1500.0, 1600.0]  # the std of images of 16 bits


def images_of(std, *options):
    """A config for images of this std."""
    cfg = config("GN", False, *options)
    cfg.DATASETS.PIXEL_STD = std
    return cfg


@pytest.mark.parametrize(
    ("source", "options", "suiting"),
    [("R-50-GN.pkl", (), [24.5614, 26.3158, 28.0702]),
     ("resnet50_gn-00000000.pth", (), [24.5614, 26.3158, 28.0702]),
     ("torchvision/R-50.pkl", RGB, [1434.2632, 1503.1579, 1610.5263])],
)  # fmt: skip
def test_images_of_16_bits_are_seen_at_the_scale_of_the_weights(source, options, suiting):
    state = weights() if "gn" in source.lower() else BN
    for scale in (0.5, 1, 3):
        cfg = images_of(DEEP, *options, "MODEL.PIXEL_STD", [value * scale for value in suiting])
        assert not [w for w in check_weights(cfg, state, source) if "PIXEL" in w]
    cfg.MODEL.PIXEL_STD = [value * 8 for value in suiting]
    (warning,) = [w for w in check_weights(cfg, state, source) if "PIXEL" in w]
    assert "at 1/8 of the contrast" in warning and warning.endswith(f'"{suiting}" keeps it')
    for wrong in ([value / 5 for value in suiting], [value * 21 for value in suiting]):
        cfg.MODEL.PIXEL_STD = wrong
        with pytest.raises(NormdetError) as info:
            check_weights(cfg, state, source)
        assert f"for images of DATASETS.PIXEL_STD {DEEP}: set" in str(info.value)
        assert str(info.value).endswith(f'MODEL.PIXEL_STD "{suiting}"')


def test_images_count_as_8_bits_and_their_std_is_asked_for():
    cfg = config("GN", False, "MODEL.PIXEL_STD", [26.0] * 3)
    with pytest.raises(NormdetError, match=r"or DATASETS.PIXEL_STD to the std of the images'"):
        check_weights(cfg, weights(), "R-50-GN.pkl")
    cfg.DATASETS.PIXEL_STD = DEEP
    check_weights(cfg, weights(), "R-50-GN.pkl")


def test_dark_images_under_their_own_statistics():
    # A few spots on black: less than 1/20 of ImageNet's std.
    cfg = images_of([1.9] * 3, "MODEL.PIXEL_STD", [1.9 / 57] * 3)
    assert check_weights(cfg, weights(), "R-50-GN.pkl") == []


def test_the_one_channel_of_16_bits():
    for std, fits in ((26.0, True), (1.0, False)):
        cfg = images_of([1500.0], "INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [900.0])
        cfg.MODEL.PIXEL_STD = [std]
        if fits:
            check_weights(cfg, weights(), "R-50-GN.pkl")
        else:
            with pytest.raises(NormdetError, match=r'set MODEL.PIXEL_STD "\[26.3158\]"$'):
                check_weights(cfg, weights(), "R-50-GN.pkl")


def test_weights_that_were_trained_on_16_bits_are_for_others_too():
    said = describe(images_of(DEEP, "MODEL.PIXEL_STD", [24.6, 26.3, 28.1]))
    checkpoint = {"model": weights(), "normdet": said}
    same = config("GN", False, "MODEL.PIXEL_STD", [24.6, 26.3, 28.1])
    for fitting in (
        same,
        images_of(DEEP, "MODEL.PIXEL_STD", [24.6, 26.3, 28.1]),
        images_of([60.0] * 3),
        images_of([9000.0] * 3, "MODEL.PIXEL_STD", [158.0] * 3),
    ):
        assert check_weights(fitting, checkpoint, "m.pth") == []
    with pytest.raises(NormdetError, match=r'set MODEL.PIXEL_STD "\[1.05'):
        check_weights(images_of([60.0] * 3, "MODEL.PIXEL_STD", [26.0] * 3), checkpoint, "m.pth")
    said["settings"]["DATASETS.PIXEL_STD"] = [0.0] * 3
    with pytest.raises(NormdetError, match="is not normdet's"):
        check_weights(same, checkpoint, "m.pth")


def test_group_norm_without_a_word_on_standardization_is_a_warning():
    state = {k: v for k, v in torchvision_names().items() if "running" not in k}
    for norm, way_out in (("GN", "need MODEL.RESNETS.NORM GN+WS"), ("GN+WS", "lose their")):
        (warning,) = check_weights(config(norm, False), state, "w.pth")
        assert "nothing tells whether w.pth was trained with WS" in warning and way_out in warning


def test_required_config_of_an_affine_that_is_folded():
    keys = required_config(*known(CAFFE2, "MSRA/R-50.pkl"))
    assert keys["MODEL.RESNETS.NORM"] == "FrozenBN"
    assert keys["MODEL.RESNETS.STRIDE_IN_1X1"] is True


def known(state, source):
    imported = import_weights(state, source)
    return imported.facts, imported.model


def test_a_stage_s_own_norm_is_compared():
    stage, source = "MODEL.NORMDET.RES4_NORM", f"{ZOO}MSRA/R-50.pkl"
    state = weights(0.5, 2.0, layer="backbone.bottom_up.res4.0.conv1")

    def of_stage(norm="as backbone"):
        cfg = config("BN")
        add_normdet_config(cfg)
        cfg.merge_from_list([stage, norm])
        return cfg

    (warning,) = check_weights(of_stage("GN"), state, source)
    assert f"{stage} is GN" in warning
    said = {"model": state, "normdet": describe(of_stage("GN"))}
    assert check_weights(of_stage("GN"), said, "mine.pth") == []
    with pytest.raises(NormdetError, match=f"set {stage} GN$"):
        check_weights(of_stage("GN+WS"), state, source)
    said = {"model": state, "normdet": describe(of_stage("GN+WS"))}
    with pytest.raises(NormdetError, match=rf"set {stage} BN\+WS$"):
        check_weights(of_stage(), said, "mine.pth")
    assert stage not in describe(of_stage())["norms"]
