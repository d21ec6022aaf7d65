"""`normdet.normalize` on any network: the right function, the right keys, and honest refusals."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import normdet
from normdet import NormdetError, normalize
from normdet.layers import TLU, AddAct, BatchNorm2d, FilterResponseNorm2d, GroupNorm, NormLayer
from tests.surgery import networks

FAST = ("torchvision ResNet-50", "timm RegNet", "detectron2 Panoptic-DeepLab head",
        "detectron2 ViTDet pyramid")  # fmt: skip


def rows(names):
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


# Its pyramid's GELU is no ReLU that TLU could stand for.
LENIENT = {"detectron2 ViTDet pyramid"}


@pytest.mark.slow
@pytest.mark.parametrize("name", rows(networks.NETWORKS))
def test_a_row_of_the_table_trains_and_infers(name):
    """FRN+TLU: one step, in which all that is new learns, and one inference."""
    torch.manual_seed(0)
    model = networks.NETWORKS[name]()
    normalize(model, "FRN+TLU", strict=name not in LENIENT)
    norms = [m for m in model.modules() if isinstance(m, FilterResponseNorm2d)]
    assert len(norms) >= 4 and model.norm_report.changed
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    networks.loss(model).backward()
    for module in model.modules():
        if isinstance(module, NormLayer):
            for key, parameter in module.named_parameters(recurse=False):
                assert parameter.grad is not None, (type(module).__name__, key)
    networks.infer(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", rows(n for n in networks.NETWORKS if n not in ("detectron2 ViTDet pyramid",))
)
def test_every_activation_is_where_it_was(name):
    """BN with TLU at its start computes what BN with ReLU does, wherever each ReLU stood."""
    torch.manual_seed(0)
    model = networks.spread_statistics(networks.NETWORKS[name]()).eval()
    # The heads of torchvision's second RetinaNet have GN, which BN is not.
    parts = ["backbone"] if name == "torchvision RetinaNet v2" else ["*"]
    changed = normalize(copy.deepcopy(model), "BN+TLU", parts=parts)
    changed.eval()
    with torch.no_grad():
        for want, got in zip(networks.features(model), networks.features(changed), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * want.abs().max().item())
    taus = {key for key in changed.state_dict() if key.endswith("tau")}
    added = changed.state_dict().keys() - model.state_dict().keys() - taus
    assert taus and all(key.endswith("num_batches_tracked") for key in added)
    assert not model.state_dict().keys() - changed.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["GN", "GN+WS", "SyncBN", "FrozenBN", "LN", "GN+AWS"])
def test_other_options(option):
    torch.manual_seed(0)
    model = normalize(torchvision.models.resnet18(), option)
    assert {c.after for c in model.norm_report.changed} == {option}
    assert len(model.norm_report.changed) == 20
    networks.loss(model).backward()
    plain = {key for key in model.state_dict() if ".reweight." not in key}
    assert plain <= torchvision.models.resnet18().state_dict().keys() | {"never"}


def test_batch_statistics_and_constants_are_taken_over():
    model = networks.spread_statistics(torchvision.models.resnet18()).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 1e-3
    frozen = normalize(copy.deepcopy(model), "FrozenBN").eval()
    with torch.no_grad():
        for want, got in zip(networks.features(model), networks.features(frozen), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_affine_is_kept_or_started_afresh():
    model = torchvision.models.resnet18(zero_init_residual=True)
    assert not normalize(copy.deepcopy(model), "GN").layer1[0].bn2.weight.any()
    assert normalize(model, "GN", start="fresh").layer1[0].bn2.weight.all()


def test_a_frozen_part_stays_frozen():
    model = torchvision.models.resnet18()
    for parameter in model.layer1.parameters():
        parameter.requires_grad = False
    normalize(model, "FRN+TLU")
    norms = [m for m in model.layer1.modules() if isinstance(m, FilterResponseNorm2d)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())
    assert model.layer2[0].bn1.weight.requires_grad


def test_parts_by_name_and_pattern():
    model = normalize(torchvision.models.resnet18(), "GN", parts=["layer4", "layer1.*.bn1"])
    names = {c.name for c in model.norm_report.changed}
    assert names == {"layer1.0.bn1", "layer1.1.bn1"} | {n for n in names if n.startswith("layer4")}
    assert isinstance(model.layer4[0].bn2, GroupNorm) and isinstance(model.bn1, nn.BatchNorm2d)
    with pytest.raises(NormdetError, match="neck.*no module"):
        normalize(torchvision.models.resnet18(), "GN", parts=["neck"])


def test_a_class_and_its_methods_stay():
    block = torchvision.models.resnet18().layer1[0]
    kind = type(block)
    normalize(block, "GN+TLU")
    assert isinstance(block, kind) and type(block).__name__ == "BasicBlock"
    assert isinstance(block.join, AddAct) and "self.join" in block.code
    again = copy.deepcopy(block)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(again(x), block(x)) and again.join.tau is not block.join.tau


class Branching(nn.Module):
    """A forward that torch.fx cannot read."""

    def __init__(self, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.act = activation or nn.ReLU()

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.act(y) if x.sum() > -1e9 else y


def test_what_cannot_be_read_is_refused_until_a_forward_is_shown():
    with pytest.raises(NormdetError, match="bn.*nothing tells what follows it.*inputs="):
        normalize(Branching(), "FRN+TLU")
    model = normalize(Branching(), "FRN+TLU", inputs=(torch.rand(1, 3, 8, 8),))
    assert model.bn.activation == "TLU" and isinstance(model.act, nn.Identity)
    assert model.training
    # An activation that stays needs no answer.
    assert isinstance(normalize(Branching(), "GN").act, nn.ReLU)


def test_another_activation_is_not_replaced_by_guess():
    with pytest.raises(NormdetError, match="SiLU follows it"):
        normalize(Branching(nn.SiLU()), "FRN+TLU", inputs=(torch.rand(1, 3, 8, 8),))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
    normalize(model, "GN")
    assert isinstance(model[1], GroupNorm) and isinstance(model[2], nn.SiLU)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return F.relu(x) + x


def test_a_norm_that_is_read_in_two_ways_is_refused():
    with pytest.raises(NormdetError, match="nothing tells"):
        normalize(TwoReaders(), "FRN+TLU")
    x = torch.rand(1, 3, 8, 8)
    model = TwoReaders().eval()
    want = model(x)
    torch.testing.assert_close(normalize(model, "FrozenBN")(x), want)


class InTrainingAlone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return x * 2 if self.training else x


def test_a_forward_that_differs_in_training_is_not_rewritten():
    with pytest.raises(NormdetError, match="cannot read|nothing tells"):
        normalize(InTrainingAlone(), "FRN+TLU", inputs=(torch.rand(1, 3, 8, 8),))
    model = normalize(InTrainingAlone(), "GN")
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(model.train()(x), 2 * model.eval()(x))


def test_strict_off_leaves_and_reports():
    model = nn.Sequential(Branching(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    normalize(model, "FRN+TLU", strict=False)
    (left,) = model.norm_report.left
    assert left.name == "0.bn" and isinstance(model[0].bn, nn.BatchNorm2d)
    text = str(model.norm_report)
    assert "FRN+TLU fused" in text and "nothing tells" in text


@pytest.mark.parametrize(
    ("model", "option", "says"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3)), "GN", "no norm that GN could replace"),
        (lambda: nn.Sequential(nn.LayerNorm(8)), "GN", "last dimension"),
        (lambda: nn.Sequential(nn.GroupNorm(2, 8)), "FrozenBN", "no statistics, and FrozenBN"),
        (lambda: nn.Sequential(nn.GroupNorm(2, 8)), "AffineBN", "no statistics, and AffineBN"),
        (
            lambda: nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False)), "AffineBN",
            "no statistics, and AffineBN",
        ),
        (lambda: nn.Sequential(nn.BatchNorm2d(8)), "GN+WS", "no convolution"),
        (torchvision.models.resnet18, "Fixup", "start of residual blocks"),
        (torchvision.models.resnet18, "", "needs a norm"),
        (torchvision.models.resnet18, "FRN_TLU", "did you mean"),
    ],
)
def test_refusals(model, option, says):
    model = model()
    before = str(model)
    with pytest.raises(NormdetError, match=says):
        normalize(model, option)
    assert str(model) == before


def test_weight_methods_keep_to_plain_convolutions():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    with pytest.raises(NormdetError, match="WS does not know Padded"):
        normalize(nn.Sequential(Padded(3, 8, 3), nn.BatchNorm2d(8)), "GN+WS")


def test_one_and_three_dimensions_and_features():
    model = nn.Sequential(nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(1),
                          nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU())  # fmt: skip
    normalize(model, "FRN+TLU")
    assert model(torch.rand(2, 2, 3, 3, 3)).shape == (2, 6)
    assert model[5].eps_l is not None  # nothing to average: the epsilon is learned


def test_a_network_of_ours_can_be_given_another_norm():
    model = normalize(torchvision.models.resnet18(), "GN+TLU")
    normalize(model, "FRN+TLU")
    assert isinstance(model.bn1, FilterResponseNorm2d) and model.bn1.activation == "TLU"
    assert sum(isinstance(m, AddAct | TLU) for m in model.modules()) == 8
    networks.loss(model).backward()


@pytest.mark.slow
def test_a_detector_gets_norms_where_the_flag_would_put_them():
    name = "detectron2 Mask R-CNN"
    model = normalize(networks.NETWORKS[name](), "GN")
    assert isinstance(model.backbone.fpn_output2.norm, GroupNorm)
    assert isinstance(model.roi_heads.mask_head.mask_fcn1.norm, GroupNorm)
    assert model.proposal_generator.rpn_head.conv.norm is None
    chosen = normalize(networks.NETWORKS[name](), "GN", parts=["rpn_head", "box_fc"])
    assert isinstance(chosen.proposal_generator.rpn_head.conv.norm, GroupNorm)
    assert isinstance(chosen.backbone.bottom_up.stem.conv1.norm, nn.BatchNorm2d)
    assert hasattr(chosen.roi_heads.box_head, "fc_norm1")


@pytest.mark.slow
def test_a_detector_normalized_after_building_is_the_one_built_with_the_flag():
    build = networks.NETWORKS["detectron2 RetinaNet"]
    after = normalize(build(), "GN+TLU")
    cfg = networks.get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.merge_from_file(
        networks.zoo("COCO-Detection/retinanet_R_50_FPN_1x.yaml"), allow_unsafe=True
    )
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", 0
    normdet.set_norm(cfg, "GN+TLU")
    flagged = networks.build_model(cfg)
    assert after.state_dict().keys() == flagged.state_dict().keys()
    after.load_state_dict(flagged.state_dict())
    with torch.no_grad():
        pairs = zip(
            networks.features(after.eval()), networks.features(flagged.eval()), strict=True
        )
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_shared_norms_must_agree():
    shared = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared)
    with pytest.raises(NormdetError, match="nothing tells"):
        normalize(model, "FRN+TLU")
    alike = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared,
                          nn.ReLU())  # fmt: skip
    normalize(alike, "FRN+TLU")
    assert alike[1] is alike[4] and alike[1].activation == "TLU"
    assert all(isinstance(alike[k], nn.Identity) for k in (2, 5))
    assert alike(torch.rand(1, 3, 4, 4)).shape == (1, 4, 4, 4)


def test_an_activation_shared_between_modules_keeps_its_other_uses():
    act = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), act), act)
    normalize(model, "BN+TLU")
    assert model[0][1].activation == "TLU" and isinstance(model[1], nn.ReLU)
    assert isinstance(model[0][1], BatchNorm2d)


def test_a_recorded_forward_sees_calls_of_a_shared_head():
    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, maps):
            return [F.relu(self.head(x)) for x in maps]

    maps = [torch.rand(1, 3, s, s) for s in (8, 4)]
    with pytest.raises(NormdetError, match="function in a forward"):
        normalize(Levels(), "FRN+TLU", inputs=(maps,))
    assert normalize(Levels(), "GN", inputs=(maps,)).head[1].activation is None


build_partial = partial(torchvision.models.resnet18, norm_layer=nn.InstanceNorm2d)


def test_a_norm_without_an_affine():
    networks.loss(normalize(build_partial(), "FRN+TLU")).backward()


@pytest.mark.slow
def test_norms_where_there_were_none_start_from_data():
    torch.manual_seed(0)
    plain = networks.from_yaml("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    inputs = [[{"image": torch.rand(3, 64, 64) * 255}]]

    def forward(model, batch=inputs[0]):
        with torch.no_grad():
            images = model.preprocess_image(batch)
            return list(model.backbone.eval()(images.tensor).values())

    started = normalize(copy.deepcopy(plain), "GN", parts=["fpn"], start=_with_boxes(inputs))
    kept = normalize(copy.deepcopy(plain), "GN", parts=["fpn"])
    names = started.norm_report.started
    assert len(names) == 6 and all(name.startswith("backbone.fpn_") for name in names)
    assert not isinstance(started.backbone.bottom_up.stem.conv1.norm, NormLayer)
    want = forward(plain)
    off = [
        sum(float((a - b).square().mean()) for a, b in zip(forward(m), want, strict=True))
        for m in (started, kept)
    ]
    assert off[0] < off[1] / 4, off


def _with_boxes(batches):
    from detectron2.structures import Boxes, Instances

    for batch in batches:
        for example in batch:
            boxes = Boxes(torch.tensor([[8.0, 8, 40, 40]]))
            found = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([0]))
            example["instances"] = found
        yield batch


def test_batches_have_nothing_to_start_where_norms_stood_before():
    with pytest.raises(NormdetError, match="here each takes the place of another"):
        normalize(torchvision.models.resnet18(), "GN", start=[torch.rand(1, 3, 32, 32)])
    with pytest.raises(NormdetError, match="nor batches"):
        normalize(torchvision.models.resnet18(), "GN", start="new")


class Branches(nn.Module):
    """A convolution over lists of maps, one a dilation, as TridentNet's blocks have it."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3) / 9)
        self.norm, self.activation = nn.BatchNorm2d(channels), None

    def forward(self, maps):
        dilations = (1, 2, 3) if self.training else (2,)
        maps = [F.conv2d(x, self.weight, padding=d, dilation=d) for x, d in
                zip(maps, dilations, strict=True)]  # fmt: skip
        return [self.norm(x) for x in maps]


class Trident(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.second = Branches(8)

    def forward(self, x):
        maps = [F.relu(self.first(x))] * (3 if self.training else 1)
        return torch.cat([F.relu_(x) for x in self.second(maps)])


def test_blocks_like_tridentnets_take_norms_and_keep_their_relu():
    model = normalize(Trident(), "GN")
    assert {c.name for c in model.norm_report.changed} == {"first.1", "second.norm"}
    model(torch.rand(1, 3, 8, 8)).sum().backward()
    assert model.second.norm.weight.grad is not None
    assert len(model.eval()(torch.rand(1, 3, 8, 8))) == 1
    for option, says in (("FRN+TLU", "nothing tells"), ("GN+WS", "no convolution whose")):
        with pytest.raises(NormdetError, match=says):
            normalize(Trident(), option)


@pytest.mark.parametrize("weight", ["WS", "AWS", "WN", "SpectralNorm"])
def test_convolutions_of_other_dimensions_get_a_weight_method(weight):
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Unflatten(2, (1, 1, -1)),
        nn.Conv3d(8, 8, (1, 1, 3)), nn.BatchNorm3d(8), nn.ReLU(),
    )  # fmt: skip
    keys = set(model.state_dict())
    normalize(model, f"GN+{weight}")
    assert {"0.weight", "4.weight"} <= keys & model.state_dict().keys()
    y = model(torch.randn(2, 3, 9))
    y.sum().backward()
    assert y.shape == (2, 8, 1, 1, 5) and model[4].reweight is not None


@pytest.mark.parametrize("weight", ["WS", "AWS"])
def test_a_transposed_convolution_in_groups_is_refused_before_anything_changes(weight):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 8, 2, groups=2),
        nn.BatchNorm2d(8),
    )  # fmt: skip
    with pytest.raises(NormdetError, match=f"{weight} does not know ConvTranspose2d"):
        normalize(model, f"GN+{weight}")
    assert isinstance(model[1], nn.BatchNorm2d) and type(model[0]) is nn.Conv2d
