"""New norms start from data: their outputs have the mean and deviation of the plain layer's."""

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from torch import nn

from normdet.layers import BatchNorm2d
from normdet.layers.reparametrized import learned_weight
from normdet.modeling.dress import dress_conv
from normdet.modeling.start import new_norms, start_from_data
from normdet.options import parse
from tests.modeling.test_parts import config
from tests.modeling.test_same_as_stock import images

OPTIONS = (
    "GN", "LN", "IN", "FRN+TLU", "BN", "SyncBN", "BRN", "BIN", "SwitchNorm", "EvalNorm",
    "InPlaceABN", "MeanOnlyBN+WN", "GN+WS", "FRN+TLU+WS", "GN+AWS", "GN+WN", "BN+SpectralNorm",
)  # fmt: skip


class Layer(nn.Module):
    """One normalized convolution, its activation left out."""

    def __init__(self, text: str, activate: bool = False, **params):
        super().__init__()
        torch.manual_seed(0)
        self.conv = Conv2d(8, 16, 3, padding=1, bias=False)
        dress_conv(self, self.conv, parse(text, params), activate=activate)

    def forward(self, x):
        return self.conv(x)


def batches(count=3):
    torch.manual_seed(1)
    shape = (2, 8, 9, 7)
    return [(k + 1) * torch.randn(shape) + torch.linspace(-1, 1, 8)[:, None, None]
            for k in range(count)]  # fmt: skip


def moments(outputs):
    rows = torch.cat([y.double().movedim(1, -1).flatten(0, -2) for y in outputs])
    return rows.mean(0), rows.std(0, correction=0)


@pytest.mark.parametrize("text", OPTIONS)
def test_mean_and_deviation_are_those_of_the_plain_layer(text):
    plain, inputs = Layer(""), batches()
    layer = Layer(text)
    assert start_from_data(layer, inputs) == ["conv.norm"]
    with torch.no_grad():
        mean, std = moments([plain(x) for x in inputs])
        own_mean, own_std = moments([layer.train()(x) for x in inputs])
    torch.testing.assert_close(own_mean, mean, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(own_std, std, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["GN", "FRN"])
def test_the_affine_is_that_of_the_formula_in_float64(text):
    inputs, layer = batches(1), Layer(text)
    start_from_data(layer, inputs)
    z = torch.nn.functional.conv2d(inputs[0].double(), layer.conv.weight.double(), padding=1)
    if text == "GN":
        groups = z.unflatten(1, (layer.conv.norm.num_groups, -1))
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        h = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)
    else:
        h = z / (z.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()
    std = (z.var((0, 2, 3), correction=0) / h.var((0, 2, 3), correction=0)).sqrt()
    shift = z.mean((0, 2, 3)) - std * h.mean((0, 2, 3))
    torch.testing.assert_close(layer.conv.norm.weight.double(), std, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.conv.norm.bias.double(), shift, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ["BN", "EvalNorm", "BRN"])
def test_running_averages_are_those_of_all_batches(text):
    layer, plain, inputs = Layer(text), Layer(""), batches()
    momentum = layer.conv.norm.momentum
    start_from_data(layer, inputs)
    outputs = torch.cat([plain(x).detach() for x in inputs])
    var = outputs.var((0, 2, 3), correction=0)
    torch.testing.assert_close(
        layer.conv.norm.running_mean, outputs.mean((0, 2, 3)), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(layer.conv.norm.running_var, var, atol=1e-4, rtol=1e-4)
    assert layer.conv.norm.momentum == momentum


@pytest.mark.parametrize("text", ["GN", "FRN+TLU"])
def test_keep_softens_the_norm_and_the_moments_stay(text):
    family = text.split("+")[0]
    layer = Layer(text, **{family: {"LEARNED_EPS": "always"}})
    inputs, plain = batches(), Layer("")
    start_from_data(layer, inputs, keep=0.75)
    norm = layer.conv.norm
    with torch.no_grad():
        eps = norm.eps + norm.eps_l.abs()
        spread = torch.stack([norm.own_moments(plain(x))[1].mean() - eps for x in inputs])
        mean, std = moments([plain(x) for x in inputs])
        own_mean, own_std = moments([layer(x) for x in inputs])
    # The epsilon the norm was built with counts as part of what it divides by.
    assert float(norm.eps_l.detach()) == pytest.approx(3 * float(spread.mean()), rel=1e-3)
    torch.testing.assert_close(own_mean, mean, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(own_std, std, atol=2e-4, rtol=1e-4)


def test_only_new_norms_that_train_are_started():
    model = nn.ModuleDict({name: Layer("GN") for name in ("new", "trained", "fixed", "other")})
    nn.init.constant_(model["trained"].conv.norm.bias, 0.5)
    model["fixed"].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = model.values()
    names = start_from_data(
        model, batches(), prefixes=["new", "trained", "fixed"],
        forward=lambda x: [layer(x) for layer in run],
    )  # fmt: skip
    assert names == ["new.conv.norm"]
    for key, value in model.state_dict().items():
        changed = key in ("new.conv.norm.weight", "new.conv.norm.bias")
        assert torch.equal(value, before[key]) != changed, key


def test_a_constant_channel_keeps_its_start_values():
    layer = Layer("GN")
    layer.conv.weight.data[3] = 0
    start_from_data(layer, batches())
    assert layer.conv.norm.weight[3] == 1 and layer.conv.norm.bias[3] == 0
    assert layer.conv.norm.weight.isfinite().all()


def test_a_norm_without_input_is_left_out():
    layer = Layer("GN")
    assert start_from_data(layer, [torch.zeros(0, 8, 4, 4)]) == []
    assert (layer.conv.norm.weight == 1).all()


@pytest.mark.parametrize("text", ["GN", "FRN+TLU", "InPlaceABN"])
def test_an_activation_is_handed_on_and_not_measured(text):
    layer, bare, handed = Layer(text, activate=True), Layer(text), []
    start_from_data(layer, batches(), forward=lambda x: handed.append(layer(x)))
    start_from_data(bare, batches())
    torch.testing.assert_close(layer.conv.norm.weight, bare.conv.norm.weight)
    torch.testing.assert_close(layer.conv.norm.bias, bare.conv.norm.bias)
    plain = Layer("")(batches()[0])
    torch.testing.assert_close(handed[0], layer.conv.norm.activate(plain))
    assert bool((handed[0] >= 0).all()) == (text != "InPlaceABN")  # whose ReLU leaks


@pytest.mark.parametrize("text", ["GN", "FRN+TLU"])
def test_the_rest_of_a_network_is_left_as_it_was(text):
    before, layer = BatchNorm2d(8), Layer(text, activate=True)
    model = nn.Sequential(before, layer).eval()
    state = {key: value.clone() for key, value in before.state_dict().items()}
    weight = layer.conv.weight.clone()
    start_from_data(model, batches())
    assert not model.training and not before.training
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
    assert torch.equal(layer.conv.weight, weight)
    assert layer.conv.norm.activation == parse(text).activation
    assert (layer.conv.norm.tau is None) == (text == "GN") and not layer.conv._forward_pre_hooks


def test_a_head_shared_by_levels_is_started_from_all_of_them():
    cfg = config("retinanet", "MODEL.RETINANET.NORM", "BN", "MODEL.RESNETS.DEPTH", 50)
    torch.manual_seed(0)
    model = build_model(cfg)
    momentum, attributes = model.head.cls_subnet[1][0].momentum, set(vars(model))
    names = start_from_data(model, [images("retinanet")], prefixes=["head."])
    assert names == [f"head.{net}_subnet.{3 * k + 1}" for net in ("cls", "bbox") for k in range(4)]
    norm = model.head.cls_subnet[1]
    assert norm.level == 0 and vars(model).keys() == attributes
    for level in norm:
        assert level.running_mean.any() and level.momentum == momentum


@pytest.mark.slow
def test_a_detector_of_new_head_norms_keeps_the_scale_of_its_features():
    """The predictors' inputs have the deviation that they have without norms, to a quarter."""

    def seen(text, start):
        cfg = config(
            "mask_rcnn", "MODEL.FPN.NORM", text, "MODEL.ROI_MASK_HEAD.NORM", text,
            "MODEL.ROI_BOX_HEAD.NORM", "", "MODEL.RESNETS.NORM", "FrozenBN",
        )  # fmt: skip
        torch.manual_seed(0)
        model = build_model(cfg).train()
        assert bool(new_norms(model)) == bool(text)
        if start:
            start_from_data(model, [images("mask_rcnn")])
        found = []
        model.proposal_generator.rpn_head.register_forward_pre_hook(
            lambda _, inputs: found.append(inputs[0][0].std())
        )
        model.eval()
        with torch.no_grad():
            model(images("mask_rcnn"))
        return float(found[0])

    plain = seen("", False)
    assert seen("GN", True) == pytest.approx(plain, rel=0.25)
    assert seen("GN", False) != pytest.approx(plain, rel=0.25)


@pytest.mark.parametrize("text", ["LN+WS", "FRN+TLU", "BN"])
def test_fully_connected_layers_and_deconvolutions_are_started(text):
    """In a detector's heads the predictors' inputs have the moments of the plain layers."""
    keys = ("MODEL.NORMDET.BOX_FC_NORM", "MODEL.NORMDET.MASK_DECONV_NORM")
    cfg = config("mask_rcnn", *(word for key in keys for word in (key, text)))
    torch.manual_seed(0)
    model = build_model(cfg)
    heads = model.roi_heads
    boxes, masks = torch.rand(40, 32, 7, 7), torch.rand(6, 32, 14, 14)

    def forward(_):
        heads.box_head(boxes)
        return heads.mask_head.layers(masks)

    names = start_from_data(model, [None], prefixes=["roi_heads."], forward=forward)
    assert names == ["roi_heads.box_head.fc_norm1", "roi_heads.mask_head.deconv_norm"]
    norm, layer = heads.box_head.fc_norm1, heads.box_head.fc1
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    activation, norm.activation, tau, norm.tau = norm.activation, None, norm.tau, None
    with torch.no_grad():
        heads.box_head.train()(boxes)
        own_mean, own_std = moments([norm(seen[1])])
        mean, std = moments([nn.functional.linear(seen[0], learned_weight(layer))])
    assert activation and (tau is None) == (text != "FRN+TLU")
    torch.testing.assert_close(own_mean, mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(own_std, std, atol=1e-3, rtol=1e-3)
