"""INPUT.TILE in training: the annotations of a random tile fit its pixels."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import tifffile
import torch
from detectron2.structures import BoxMode
from PIL import Image

from normdet.config import load_config
from normdet.data.mapper import build_mapper
from normdet.errors import NormdetError

VALUES = (40, 90, 140, 190)


def config(*opts):
    tiles = ["INPUT.TILE", 64, "INPUT.TILE_OVERLAP", 16, "INPUT.MIN_SIZE_TRAIN", (64,)]
    plain = ["INPUT.RANDOM_D4", False, "MODEL.DEVICE", "cpu"]
    return load_config("quickstart/gn.yaml", [*tiles, *plain, *opts])


@pytest.fixture
def image():
    """Rectangles of different grey values: at an edge, large, small, and near a corner."""
    pixels = np.zeros((150, 200), np.uint8)
    for value, (x, y, w, h) in zip(
        VALUES, [(0, 10, 30, 40), (50, 30, 100, 90), (170, 20, 9, 9), (180, 130, 20, 20)],
        strict=True,
    ):  # fmt: skip
        pixels[y : y + h, x : x + w] = value
    return pixels


def record(path, pixels, kind):
    annotations = []
    for value in VALUES:
        mask = np.asfortranarray(pixels == value, dtype=np.uint8)
        rle = mask_util.encode(mask)
        x, y, w, h = mask_util.toBbox(rle).tolist()
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(
            {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0,
             "segmentation": polygon if kind == "polygon" else rle}
        )  # fmt: skip
    size = dict(zip(("height", "width"), pixels.shape, strict=True))
    return {"file_name": str(path), "image_id": 1, "annotations": annotations, **size}


@pytest.mark.parametrize("kind", ["rle", "polygon"])
@pytest.mark.parametrize("d4", [False, True])
def test_masks_of_a_tile_are_those_of_its_pixels(kind, d4, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    mapper = build_mapper(config("INPUT.RANDOM_D4", d4), is_train=True)
    entry = record(tmp_path / "image.png", image, kind)
    np.random.seed(3)  # noqa: NPY002, detectron2 draws from it
    counts = set()
    for _ in range(30):
        example = mapper(entry)
        tile, found = example["image"][0], example["instances"]
        assert tile.shape == (64, 64)
        shown = [value for value in VALUES if (tile == value).any()]
        assert len(found) == len(shown)
        counts.add(len(shown))
        for mask, box in zip(found.gt_masks.tensor, found.gt_boxes.tensor.tolist(), strict=True):
            (value,) = tile[mask].unique().tolist()
            assert torch.equal(mask, tile == value)
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert counts >= {1, 2}


def test_boxes_without_masks_are_clipped_to_the_tile(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    entry = record(tmp_path / "image.png", image, "rle")
    mapper = build_mapper(config("MODEL.MASK_ON", False), is_train=True)
    np.random.seed(1)  # noqa: NPY002, detectron2 draws from it
    for _ in range(20):
        example = mapper(entry)
        tile, boxes = example["image"][0], example["instances"].gt_boxes.tensor
        assert len(boxes) == sum(bool((tile == value).any()) for value in VALUES)
        for x0, y0, x1, y1 in boxes.int().tolist():
            assert len(tile[y0:y1, x0:x1].unique()) == 1


def test_sixteen_bits_in_one_channel(image, tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", image.astype(np.uint16) * 100)
    opts = ("INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [3000.0], "MODEL.PIXEL_STD", [3000.0])
    example = build_mapper(config(*opts), is_train=True)(
        record(tmp_path / "deep.tif", image, "rle")
    )
    assert example["image"].shape == (1, 64, 64)
    assert set(example["image"].unique().tolist()) <= {0, *(value * 100 for value in VALUES)}


def test_an_image_smaller_than_a_tile_is_taken_whole(tmp_path):
    small = np.zeros((40, 50), np.uint8)
    for index, value in enumerate(VALUES):
        small[5:15, index * 12 : index * 12 + 8] = value
    Image.fromarray(small).save(tmp_path / "small.png")
    mapper = build_mapper(config("INPUT.MIN_SIZE_TRAIN", (40,)), is_train=True)
    example = mapper(record(tmp_path / "small.png", small, "rle"))
    assert example["image"].shape == (3, 40, 50) and len(example["instances"]) == 4


def test_the_test_mapper_leaves_the_image_as_it_is(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    example = build_mapper(config(), is_train=False)(record(tmp_path / "image.png", image, "rle"))
    assert np.array_equal(example["image"][0].numpy(), image)


@pytest.mark.parametrize(
    "opts", [("INPUT.CROP.ENABLED", True), ("MODEL.KEYPOINT_ON", True)], ids=lambda o: o[0]
)
def test_options_that_exclude_tiles_are_refused(opts):
    with pytest.raises(NormdetError, match=r"INPUT\.TILE"):
        build_mapper(config(*opts), is_train=True)
