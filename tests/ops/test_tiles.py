"""Moments of an image from its tiles: a norm gives a tile what it gives the whole image there."""

import pytest
import torch
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.evaluation.image_statistics import cores_of
from normdet.evaluation.tiles import tile_boxes
from normdet.layers import AddAct
from normdet.ops.padded import Extents, Padded, padded, plain
from normdet.ops.tiles import ImageMoments, Tiles, is_tiled
from tests.layers.test_every_option import OPTIONS, build

CHANNELS = 32


def image(height: int, width: int) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(1, CHANNELS, height, width, dtype=torch.float64) + 0.3
    x[..., width // 2 :] *= 0.01  # half of it is nearly empty
    return x


def trained(text: str) -> nn.Module:
    """The norm of an option in test mode, its numbers like no other's."""
    torch.manual_seed(1)
    norm = build(text).double().eval()
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data = value.data + torch.rand_like(value) / 2
    return norm


def marked(x: Tensor, moments: ImageMoments, boxes, all_boxes) -> Padded:
    """Some tiles of a map as one batch."""
    batch = torch.cat([x[..., y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
    cores = dict(zip(all_boxes, cores_of(all_boxes), strict=True))
    size = batch.shape[2:]
    tiles = Tiles(moments, [cores[box] for box in boxes], Extents([size] * len(batch), size))
    return padded(batch, tiles, clean=True)


def cut(y: Tensor, boxes) -> Tensor:
    return torch.cat([y[..., y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])


@pytest.mark.parametrize("text", OPTIONS)
@pytest.mark.parametrize("overlap", [0, 4])
def test_tiles_are_normalized_as_the_image_is(text, overlap):
    """Gathered some tiles at a time, over cores that cover the image once."""
    norm, x = trained(text), image(16, 28)
    boxes = tile_boxes(16, 28, 10 if overlap else 4, overlap)
    moments = ImageMoments()
    with torch.no_grad():
        want = norm(x)
        for k in range(0, len(boxes), 3):
            norm(marked(x, moments, boxes[k : k + 3], boxes))
        moments.complete()
        for k in range(0, len(boxes), 2):
            some = boxes[k : k + 2]
            got = norm(marked(x, moments, some, boxes))
            assert isinstance(got, Padded)
            torch.testing.assert_close(plain(got), cut(want, some), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["GN", "LN", "FRN+TLU", "RMSGN"])
def test_all_tiles_at_once_need_no_second_pass(text):
    norm, x, boxes = trained(text), image(12, 12), tile_boxes(12, 12, 4, 0)
    with torch.no_grad():
        got = norm(marked(x, ImageMoments(), boxes, boxes))
        torch.testing.assert_close(plain(got), cut(norm(x), boxes), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", ["GN", "FRN+TLU", "FrozenBN"])
def test_the_join_of_a_block(text):
    norm, x, boxes = trained(text), image(8, 8), tile_boxes(8, 8, 4, 0)
    norm.activation, norm.tau = None, None
    join = AddAct(CHANNELS)
    with torch.no_grad():
        tiles = marked(x, ImageMoments(), boxes, boxes)
        got = norm.joined(tiles, tiles * 0.5, join)
        want = norm.joined(x, x * 0.5, join)
    assert isinstance(got, Padded)
    torch.testing.assert_close(plain(got), cut(want, boxes), rtol=1e-9, atol=1e-9)


def test_each_pixel_of_the_image_counts_once():
    x, boxes = image(8, 16), tile_boxes(8, 16, 6, 2)
    tiles = marked(x, ImageMoments(), boxes, boxes)
    mean, var = tiles.extents.moments(tiles)
    assert mean.shape == var.shape == (len(boxes), CHANNELS)
    want = torch.var_mean(x, (2, 3), correction=0)
    torch.testing.assert_close((var[:1], mean[:1]), want, rtol=1e-12, atol=0)


def test_a_map_smaller_than_a_core_counts():
    """At stride 32 a tile may be one pixel, and its core less than one."""
    x = image(1, 1)
    tiles = padded(x, Tiles(ImageMoments(), [(0.1, 0.9, 0.3, 1.0)], Extents([(1, 1)], (1, 1))))
    mean, var = tiles.extents.moments(tiles)
    assert torch.equal(mean, x[..., 0, 0]) and not var.any()


def test_an_image_that_is_constant():
    norm, boxes = trained("GN"), tile_boxes(8, 8, 4, 0)
    x = torch.full((1, CHANNELS, 8, 8), 3.0).double()
    with torch.no_grad():
        y = norm(marked(x, ImageMoments(), boxes, boxes))
    assert torch.isfinite(plain(y)).all()


def test_large_offsets_do_not_cancel():
    x, boxes = image(8, 8).float() + 1e4, tile_boxes(8, 8, 4, 0)
    moments = ImageMoments()
    for box in boxes:
        marked_one = marked(x, moments, [box], boxes)
        _, var = marked_one.extents.moments(marked_one)
    torch.testing.assert_close(
        var[:1].double(), x.double().var((2, 3), correction=0), rtol=1e-3, atol=1e-6
    )


def test_maps_past_the_first_pass_keep_their_own_statistics():
    """Such as a head that the first pass left out."""
    x, boxes = image(8, 8), tile_boxes(8, 8, 4, 0)
    norm, moments = trained("GN"), ImageMoments()
    with torch.no_grad():
        norm(marked(x, moments, boxes, boxes))
        moments.complete()
        first = norm(marked(x, moments, boxes, boxes))
        assert not is_tiled(first)
        got = norm(first)
        torch.testing.assert_close(plain(got), norm(plain(first)), rtol=1e-9, atol=1e-9)
    assert len(moments) == 1


def test_another_map_at_the_same_place_is_refused():
    moments = ImageMoments()
    for size in (8, 6):
        x, boxes = image(size, size), tile_boxes(size, size, size // 2, 0)
        tiles = marked(x, moments, boxes, boxes)
        if size == 8:
            tiles.extents.moments(tiles)
    with pytest.raises(NormdetError, match="TILE_STATISTICS own"):
        tiles.extents.moments(tiles)
