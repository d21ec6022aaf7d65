"""EvalNorm trains as BN; afterwards only its blend is learned, from images."""

import copy

import pytest
import torch
from torch import nn

from normdet import layers
from normdet.convert.blend import fit_eval_norm
from normdet.errors import NormdetError
from normdet.layers import EvalNorm, to_eval_norm


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), layers.BatchNorm2d(6, activation="ReLU"),
        nn.Conv2d(6, 4, 3), layers.BatchNorm2d(4, activation="TLU"),
    )  # fmt: skip


def images(count: int, batch: int, spread: float = 1.0) -> list[torch.Tensor]:
    """Examples that differ in brightness and contrast, which batch statistics mix."""
    generator = torch.Generator().manual_seed(1)
    ret = []
    for _ in range(count):
        level, contrast = torch.randn(2, batch, 1, 1, 1, generator=generator) * spread
        x = torch.randn(batch, 1, 12, 12, generator=generator)
        ret.append(x * contrast.exp() + 2 * level)
    return ret


def trained(batch: int) -> nn.Sequential:
    model = net()
    with torch.no_grad():
        for x in images(200, batch):
            model(x)
    return model


def test_trains_exactly_as_batch_norm():
    ours, plain = EvalNorm(4, activation="ReLU"), layers.BatchNorm2d(4, activation="ReLU")
    for _ in range(3):
        x = torch.randn(3, 4, 5, 5, requires_grad=True)
        for norm in (ours, plain):
            norm(x).square().sum().backward()
        assert torch.equal(ours(x), plain(x))
    for name, p in plain.named_parameters():
        assert torch.equal(ours.get_parameter(name).grad, p.grad)
    state = ours.state_dict()
    state.pop("blend")
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())


def test_the_blend_approaches_an_example_s_share_in_training():
    norm = EvalNorm(4)
    assert norm.blend == 0
    for _ in range(100):
        norm(torch.randn(4, 4, 2, 2))
    assert norm.scalars()["blend"] == pytest.approx(1 / 4, rel=1e-3)


def test_conversion_keeps_everything_and_starts_as_batch_norm():
    model = trained(2)
    model[1].option = "BN+WS"
    plain = copy.deepcopy(model)
    model = to_eval_norm(model)
    state = model.state_dict()
    assert [key for key in state if not key.endswith("blend")] == list(plain.state_dict())
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert model[1].option == "EvalNorm+WS"
    x = images(1, 2)[0]
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    torch.testing.assert_close(model.train()(x), plain.train()(x))


def test_frozen_batch_norm_is_not_converted():
    frozen = layers.FrozenBatchNorm2d(4)
    assert to_eval_norm(nn.Sequential(frozen))[0] is frozen


def test_fitting_changes_the_blend_alone():
    model = to_eval_norm(trained(2))
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rows = fit_eval_norm(model, images(20, 2))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != key.endswith("blend"), key
    assert [module.training for module in model.modules()] == modes
    assert [row.layer for row in rows] == ["1", "3"]
    assert [row.blend for row in rows] == pytest.approx([float(model[k].blend) for k in (1, 3)])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 4, 16])
def test_independent_examples_get_about_the_share_of_one(batch):
    (first, _) = fit_eval_norm(to_eval_norm(trained(batch)), images(40, batch))
    assert 0.5 / batch < first.blend < 2 / batch
    assert first.error < first.error_of_bn


def test_a_batch_of_one_repeated_image_gets_a_blend_of_one():
    model = to_eval_norm(trained(2))
    alike = [x[:1].expand(2, -1, -1, -1) for x in images(20, 2)]
    assert all(row.blend == 1 and row.error < 1e-6 for row in fit_eval_norm(model, alike))


@pytest.mark.slow
def test_fitted_outputs_are_nearer_to_those_of_training():
    """Measured by the distance of the network's outputs in test and training mode."""
    model = trained(2)
    held_out = images(60, 2)[40:]

    def distance(model) -> float:
        with torch.no_grad():
            want = [copy.deepcopy(model).train()(x) for x in held_out]
            got = [torch.cat([model.eval()(one[None]) for one in x]) for x in held_out]
        return sum(float((a - b).square().mean()) for a, b in zip(got, want, strict=True))

    plain = distance(model)
    model = to_eval_norm(model)
    fit_eval_norm(model, images(40, 2))
    assert distance(model) < 0.8 * plain


def test_an_output_does_not_depend_on_the_rest_of_a_test_batch():
    model = to_eval_norm(trained(2))
    fit_eval_norm(model, images(5, 2))
    x = images(1, 4)[0]
    torch.testing.assert_close(model.eval()(x)[:1], model(x[:1]))


def test_a_model_that_cannot_be_fitted_is_refused():
    with pytest.raises(NormdetError, match="no EvalNorm to fit"):
        fit_eval_norm(net(), images(2, 2))
    with pytest.raises(NormdetError, match="more than one example"):
        fit_eval_norm(to_eval_norm(net()), images(2, 1))


@pytest.mark.slow
def test_a_detector_is_fitted_and_loads_under_its_option():
    from detectron2.modeling import build_model

    from normdet.config import load_config
    from normdet.keys import put
    from normdet.parts import NORMED

    def build(norm: str) -> nn.Module:
        cfg = load_config("quickstart/base.yaml", ["MODEL.DEVICE", "cpu"])
        for part in NORMED:
            put(cfg, NORMED[part].key, norm)
        torch.manual_seed(0)
        return build_model(cfg).eval()

    batch = [{"image": torch.randint(0, 255, (3, 64, 64)).float()} for _ in range(2)]
    plain = build("BN").state_dict()
    model = to_eval_norm(build("BN"))
    rows = fit_eval_norm(model, [batch, batch])
    assert any(".bottom_up." in row.layer for row in rows) and max(r.blend for r in rows) > 0
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in plain.items())
    build("EvalNorm").load_state_dict(state)
