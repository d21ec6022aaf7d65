"""Images of more than 8 bits reach the model as they are; the others as detectron2 reads them."""

import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import Image

import normdet
from normdet.data import build_mapper
from normdet.data.mapper import is_deep, read_input
from normdet.errors import NormdetError


@pytest.fixture
def cfg():
    """No resizing, no flips."""
    cfg = get_cfg()
    normdet.add_normdet_config(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40,), 40
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def record(path):
    box = {"bbox": [2, 3, 12, 13], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    return {"file_name": str(path), "height": 40, "width": 50, "image_id": 1, "annotations": [box]}


DEEP = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(cfg, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP).save(path)
    for is_train in (True, False):
        example = build_mapper(cfg, is_train)(record(path))
        assert example["image"].dtype == torch.float32
        for channel in example["image"]:
            assert np.array_equal(channel.numpy(), DEEP)
    assert "annotations" not in example
    example = build_mapper(cfg, True)(record(path))
    assert example["instances"].gt_boxes.tensor.tolist() == [[2, 3, 12, 13]]


def test_channels_come_in_the_order_of_the_config(cfg, tmp_path):
    colour = np.stack([DEEP, DEEP // 2, DEEP // 3], axis=-1).astype(np.float32) - 1000
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    bgr = read_input(str(tmp_path / "a.tif"), "BGR")
    assert np.array_equal(bgr, colour[..., ::-1])
    assert np.array_equal(read_input(str(tmp_path / "a.tif"), "RGB"), colour)
    example = build_mapper(cfg, True)(record(tmp_path / "a.tif"))
    assert np.array_equal(example["image"].numpy().transpose(1, 2, 0), bgr)


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f2", "f4", "f8", "i1"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_no_tiff_loses_bits(cfg, tmp_path, dtype, channels):
    colour = np.stack([DEEP, DEEP // 2, DEEP // 3, DEEP], axis=-1)[..., :channels]
    stored = (colour / 700).astype(dtype).squeeze()
    # Beyond 8 bits, if the type can hold that.
    stored = (stored * {"i1": 1, "f2": 3}.get(dtype, 300)).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="minisblack" if channels == 1 else "rgb")
    image = build_mapper(cfg, True)(record(path))["image"].numpy()
    expected = np.atleast_3d(stored)[..., :3].astype(np.float32)
    assert np.array_equal(
        image.transpose(1, 2, 0), np.broadcast_to(expected, (40, 50, 3))[..., ::-1]
    )


def test_a_resized_deep_image_stays_in_its_range(cfg, tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    example = build_mapper(cfg, True)(record(tmp_path / "a.png"))
    assert example["image"].shape == (3, 80, 100)
    assert example["image"].mean().item() == pytest.approx(DEEP.mean(), rel=0.01)


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("RGB", "tif"), ("RGB", "jpg"), ("1", "tif")]
)
def test_eight_bits_are_detectron2s(cfg, tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((DEEP >> 8).astype(np.uint8)).convert(mode).save(path)
    assert not is_deep(str(path))
    ours, theirs = build_mapper(cfg, True)(record(path)), DatasetMapper(cfg, True)(record(path))
    assert torch.equal(ours["image"], theirs["image"]) and ours["image"].dtype == torch.uint8


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = DEEP.astype(np.float32)
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(NormdetError, match="a.tif holds values that are not finite"):
        read_input(str(tmp_path / "a.tif"), "BGR")
    with pytest.raises(NormdetError, match="need BGR, RGB or L"):
        tifffile.imwrite(tmp_path / "b.tif", DEEP)
        read_input(str(tmp_path / "b.tif"), "YUV-BT.601")
