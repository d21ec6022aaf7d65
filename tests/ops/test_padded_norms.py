"""Norms of a padded batch: what they give for an image depends on nothing outside it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.layers.population import Moments
from normdet.ops.padded import Extents, Padded, cleaned, padded, plain, with_edges
from normdet.options import parse
from tests.layers.test_every_option import OPTIONS, build

PER_EXAMPLE = [text for text in OPTIONS if not build(text).batch_statistics]
UNLIKE = [(6, 5), (8, 3), (1, 1), (7, 8)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(sizes: list[tuple[int, int]], channels: int = 32) -> list[Tensor]:
    """One of each size, `(1, C, h, w)`, no two of like contrast."""
    return [
        (torch.randn(1, channels, *size, dtype=torch.float64) + 0.3) * (k + 1)
        for k, size in enumerate(sizes)
    ]


def batch(parts: list[Tensor], height: int, width: int, outside: float = 7.0) -> Padded:
    sizes = [tuple(part.shape[2:]) for part in parts]
    whole = torch.full((len(parts), parts[0].shape[1], height, width), outside).double()
    for row, part in zip(whole, parts, strict=True):
        row[:, : part.shape[2], : part.shape[3]] = part
    x = padded(whole.requires_grad_(), Extents(sizes, (height, width)))
    x.leaf = whole
    return x


def trained(text: str) -> nn.Module:
    """The norm of an option with an affine, and statistics where it has some, like no other's."""
    norm = build(text).double()
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data = value.data + torch.rand_like(value) / 2
    return norm


def results(norm: nn.Module, run) -> dict[str, Tensor]:
    """Outputs and input gradients of `run(norm)`, and the norm's own gradients and buffers."""
    outputs, inputs = run(norm)
    sum((y * y.detach().cos()).sum() for y in outputs).backward()
    found = {f"y{k}": y.detach() for k, y in enumerate(outputs)}
    found |= {f"dx{k}": x for k, x in enumerate(inputs())}
    found |= {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return found | dict(norm.named_buffers())


def together(parts: list[Tensor], height: int, width: int, outside: float = 7.0):
    def run(norm):
        x = batch(parts, height, width, outside)
        y = cleaned(norm(x))
        cut = [part.shape[2:] for part in parts]
        outputs = [plain(y)[n : n + 1, :, :h, :w] for n, (h, w) in enumerate(cut)]
        assert plain(y).count_nonzero() == sum(part.count_nonzero() for part in outputs)

        def inputs():
            grads = [x.leaf.grad[n : n + 1, :, :h, :w] for n, (h, w) in enumerate(cut)]
            assert x.leaf.grad.count_nonzero() == sum(part.count_nonzero() for part in grads)
            return grads

        return outputs, inputs

    return run


def by_itself(parts: list[Tensor]):
    def run(norm):
        xs = [part.clone().requires_grad_() for part in parts]
        return [norm(x) for x in xs], lambda: [x.grad for x in xs]

    return run


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("text", OPTIONS)
def test_at_test_time_an_image_is_alone(text):
    norm, parts = trained(text).eval(), images(UNLIKE)
    want = results(copy.deepcopy(norm), by_itself(parts))
    assert_same(results(norm, together(parts, 8, 8)), want)


@pytest.mark.parametrize("text", PER_EXAMPLE)
def test_in_training_an_image_is_alone(text):
    norm, parts = trained(text), images(UNLIKE)
    want = results(copy.deepcopy(norm), by_itself(parts))
    assert_same(results(norm, together(parts, 9, 12)), want)


@pytest.mark.parametrize("text", OPTIONS)
def test_in_training_padding_counts_for_nothing(text):
    norm, parts = trained(text), images([(6, 5)] * 3)

    def whole(norm):
        xs = [part.clone().requires_grad_() for part in parts]
        return list(norm(torch.cat(xs)).split(1)), lambda: [x.grad for x in xs]

    want = results(copy.deepcopy(norm), whole)
    assert_same(results(norm, together(parts, 8, 8)), want)


@pytest.mark.parametrize("text", OPTIONS)
def test_in_training_it_does_not_matter_how_much_padding_there_is(text):
    norm, parts = trained(text), images(UNLIKE)
    want = results(copy.deepcopy(norm), together(parts, 8, 8))
    assert_same(results(norm, together(parts, 16, 9, outside=-100.0)), want)


@pytest.mark.parametrize("text", ["GN", "FRN+TLU", "FrozenBN", "BN+TLU", "EvoNormS0"])
def test_a_residual_join_leaves_zeros_outside(text):
    option = parse(text)
    norm, join = option.build_norm(32).double(), option.build_join(32).double()
    parts, shortcuts = images(UNLIKE), images(UNLIKE)
    x, shortcut = batch(parts, 8, 8), batch(shortcuts, 8, 8)
    y = cleaned(norm.joined(x, shortcut, join))
    outside = plain(y).clone()
    for n, (one, two) in enumerate(zip(parts, shortcuts, strict=True)):
        h, w = one.shape[2:]
        if not norm.batch_statistics:
            torch.testing.assert_close(
                plain(y)[n : n + 1, :, :h, :w], norm.joined(one, two, join)
            )
        outside[n, :, :h, :w] = 0
    assert not outside.any()


def test_an_image_without_pixels_gives_zeros():
    for text in OPTIONS:
        parts = images([(4, 4), (0, 5)])
        x = batch(parts, 4, 6)
        y = cleaned(build(text).double()(x))
        y.sum().backward()
        assert torch.isfinite(plain(y)).all() and not plain(y)[1].any(), text
        assert torch.isfinite(x.leaf.grad).all() and not x.leaf.grad[1].any(), text


def test_convolutions_and_pooling_see_the_end_of_the_image():
    parts = images([(13, 9), (6, 12)], 3)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3), nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 5, 1),
        nn.Conv2d(5, 5, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(1, 2),
    ).double()  # fmt: skip
    y = layers(batch(parts, 16, 16))
    assert isinstance(y, Padded)
    for n, part in enumerate(parts):
        alone = layers(part)
        assert y.extents.at(y.shape[2:])[n] == tuple(alone.shape[2:])
        cut = plain(y)[n : n + 1, :, : alone.shape[2], : alone.shape[3]]
        torch.testing.assert_close(cut, alone)


def test_a_map_of_another_kind_is_refused():
    x = batch(images([(4, 4), (3, 3)], 3), 8, 8)
    with pytest.raises(NormdetError, match="no halving"):
        y = nn.Conv2d(3, 3, 3).double()(x)  # 6x6
        cleaned(y)


def test_what_is_learned_of_a_batch_is_of_its_images_alone():
    norms = [nn.BatchNorm2d(32).double() for _ in "ab"]
    parts = images([(6, 5)] * 2)
    for norm, x in zip(norms, (batch(parts, 8, 8), torch.cat(parts)), strict=True):
        moments = Moments(32, x.device)
        moments.take(x)
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.var)
    assert_same(dict(norms[0].named_buffers()), dict(norms[1].named_buffers()))


def test_edges_are_repeated_and_their_gradient_comes_back():
    x = batch(images([(3, 4), (2, 2)], 2), 4, 4)
    y = with_edges(x)
    assert not isinstance(y, Padded)
    torch.testing.assert_close(y[1, :, :3, :3], plain(x)[1][:, [0, 1, 1]][:, :, [0, 1, 1]])
    torch.testing.assert_close(y[0, :, 3], plain(x)[0, :, 2])
    y.sum().backward()
    assert x.leaf.grad[1, 0].tolist() == [[1, 2, 0, 0], [2, 4, 0, 0], [0] * 4, [0] * 4]
    assert x.leaf.grad[0, 0].tolist() == [[1] * 4, [1] * 4, [2] * 4, [0] * 4]
