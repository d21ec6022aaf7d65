"""Promises that every option of the table keeps, also methods that are added later."""

import copy

import pytest
import torch
from torch import nn

from normdet.errors import NormdetError
from normdet.options import METHODS, parse, valid_options

OPTIONS = [text for text in valid_options() if parse(text).norm and not parse(text).weight]
WEIGHTED = [text for text in valid_options() if parse(text).weight and parse(text).norm == "GN"]


TRAINED = [
    text
    for text in OPTIONS
    if any(p.requires_grad for p in parse(text).build_norm(8, activate=True).parameters())
]


def build(text: str, channels: int = 32, dims: int = 2) -> nn.Module:
    return parse(text).build_norm(channels, activate=True, dims=dims)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("text", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_statistics_wide(text, dtype):
    """Values of 300 square to 90,000, which float16 cannot hold but the statistics can."""
    norm = build(text)
    x = (torch.randn(2, 32, 8, 8).sign() * 300 + torch.randn(2, 32, 8, 8)).to(dtype)
    x.requires_grad_()
    y = norm(x)
    assert y.dtype == dtype and torch.isfinite(y).all()
    want = norm(x.detach().float())
    torch.testing.assert_close(y.float(), want, rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.dtype == dtype
    for parameter in norm.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("text", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_keeps_the_graph_connected(text, training):
    norm = build(text).train(training)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x = torch.zeros(0, 32, 7, 7, requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    for parameter in norm.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() == 0
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=f"{name} learned from nothing")


@pytest.mark.parametrize("text", OPTIONS)
@pytest.mark.parametrize("shape", [(2, 32, 1, 1), (1, 32, 5, 1), (3, 1, 4, 4)])
def test_single_elements_and_single_channels(text, shape):
    norm = build(text, channels=shape[1])
    x = torch.randn(shape, requires_grad=True)
    y = norm(x)
    y.square().sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("text", OPTIONS)
def test_one_value_per_channel_works_or_says_so(text):
    norm = build(text)
    x = torch.randn(1, 32, 1, 1)
    if METHODS[parse(text).norm].needs_batch:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(x)
    else:
        assert torch.isfinite(norm(x)).all()


@pytest.mark.parametrize("text", OPTIONS)
def test_memory_layout_changes_nothing(text):
    norm = build(text)
    x = torch.randn(2, 32, 6, 5)
    want_x = x.clone().requires_grad_()
    want = norm(want_x)
    (want_grad,) = torch.autograd.grad(want.square().sum(), want_x)
    for other in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], dim=1)[:, :32],
        torch.cat([x, x], dim=3)[..., :5],
    ):
        copied = copy.deepcopy(norm)
        other = other.detach().requires_grad_()
        y = copied(other)
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(y.square().sum(), other)
        torch.testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-4)
    last = norm(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)


def held(norm: nn.Module) -> dict[str, torch.Tensor]:
    """All numbers of a norm, also those outside of its state dict."""
    return dict(norm.named_parameters()) | dict(norm.named_buffers())


@torch.no_grad()
def change(norm: nn.Module) -> None:
    """Change every number of a norm; shares stay in 0 to 1."""
    for value in held(norm).values():
        if value.is_floating_point():
            value.mul_(0.5).add_(0.1 + 0.3 * torch.rand_like(value))


@pytest.mark.parametrize("text", OPTIONS)
def test_state_dict_round_trip(text, tmp_path):
    norm = build(text)
    for _ in range(2):
        norm(torch.randn(2, 32, 4, 4) + 1)
    change(norm)
    torch.save(norm.state_dict(), tmp_path / "norm.pth")
    other, x = build(text).eval(), torch.randn(2, 32, 4, 4)
    assert not torch.equal(norm.eval()(x), other(x))
    other.load_state_dict(torch.load(tmp_path / "norm.pth", weights_only=True))
    assert torch.equal(norm(x), other(x))


@pytest.mark.parametrize("text", OPTIONS)
def test_per_example_norms_do_not_see_the_rest_of_the_batch(text):
    norm = build(text)
    x = torch.randn(3, 32, 6, 6)
    together, alone = norm(x)[:1], norm(x[:1])
    assert torch.allclose(together, alone, atol=1e-5) != norm.batch_statistics


@pytest.mark.parametrize("text", OPTIONS)
@pytest.mark.parametrize(("dims", "shape"), [(0, (2, 8, 3, 3)), (2, (2, 8, 3)), (2, (2, 9, 3, 3))])
def test_a_wrong_shape_names_both(text, dims, shape):
    if METHODS[parse(text).norm].needs_space and dims == 0:
        with pytest.raises(NormdetError, match="fully connected"):
            build(text, channels=8, dims=dims)
        return
    norm = build(text, channels=8, dims=dims)
    if norm.ranks is None and shape[1] == 8:
        assert norm(torch.randn(shape)).shape == shape
        return
    with pytest.raises(NormdetError, match=r"takes \(N, C.*got \(2, ") as error:
        norm(torch.randn(shape))
    assert str(tuple(shape)) in str(error.value)


@pytest.mark.parametrize("text", OPTIONS)
def test_every_norm_has_a_repr(text):
    norm = build(text)
    assert norm.option == text
    assert "32" in repr(norm) and ("TLU" in repr(norm)) == ("TLU" in text)


@pytest.mark.parametrize("text", OPTIONS)
def test_deep_copies_are_independent(text):
    norm = build(text)
    before = {key: value.clone() for key, value in held(norm).items()}
    other = copy.deepcopy(norm)
    change(other)
    for key, value in held(norm).items():
        assert torch.equal(value, before[key]), key
        if value.is_floating_point():
            assert not torch.equal(value, held(other)[key]), key
    assert before


@pytest.mark.parametrize("text", WEIGHTED)
def test_weights_compose_with_norms_in_a_convolution(text):
    option = parse(text)
    conv = nn.Conv2d(8, 32, 3, bias=False)
    conv.norm, conv.activation = option.build_norm(32, activate=True), None
    conv = option.build_weight(conv)
    for training in (True, False):
        y = conv.train(training)(torch.randn(1, 8, 6, 6))
        y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters())


@pytest.mark.parametrize("text", TRAINED)
def test_a_resumed_layer_goes_on_as_if_it_had_not_stopped(text, tmp_path):
    def train(norm, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(step)) + 1
            norm(x).square().sum().backward()
            optimizer.step()
            norm.after_step()

    def start():
        torch.manual_seed(1)
        norm = build(text)
        return norm, torch.optim.SGD(norm.parameters(), lr=1e-3, momentum=0.9)

    whole, optimizer = start()
    train(whole, optimizer, range(4))
    first, optimizer = start()
    train(first, optimizer, range(2))
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "stopped.pth")
    resumed, optimizer = start()
    states = torch.load(tmp_path / "stopped.pth", weights_only=True)
    for part, state in zip((resumed, optimizer), states, strict=True):
        part.load_state_dict(state)
    train(resumed, optimizer, range(2, 4))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
