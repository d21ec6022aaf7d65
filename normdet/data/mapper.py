"""detectron2's DatasetMapper with our augmentations, also for images of more than 8 bits."""

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from normdet.data.augmentation import build_augmentation
from normdet.data.channels import to_format
from normdet.data.image_file import TIFF_SUFFIXES, is_deep_tiff, read_pages
from normdet.data.rle import Piece
from normdet.errors import NormdetError


class DeepMapper(DatasetMapper):
    """detectron2's mapper; images that Pillow would clip to 8 bits reach the model in float32.

    These are 16-bit PNG, and TIFF of 16 bits, 32 bits or float, as `normdet prepare --window none`
    writes them. `MODEL.PIXEL_MEAN` and `PIXEL_STD` are then in their units.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Read, augment and annotate one image."""
        if not is_deep(dataset_dict["file_name"]):
            return super().__call__(dataset_dict)
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_deep(dataset_dict["file_name"], self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.as_tensor(image)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[1:])
        return dataset_dict


class TileMapper(DeepMapper):
    """A mapper whose first augmentation crops; the cost of its masks is that of the crop alone.

    detectron2 would draw every mask of the image at full size before it crops, and polygons would
    need shapely.
    """

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape) -> None:
        crop, *others = transforms.transforms
        frame = crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h
        cropped = (_cropped(entry, frame) for entry in dataset_dict["annotations"])
        dataset_dict["annotations"] = [entry for entry in cropped if entry is not None]
        super()._transform_annotations(dataset_dict, T.TransformList(others), image_shape)


def _cropped(entry: dict, frame: tuple[int, int, int, int]) -> dict | None:
    """An annotation in coordinates of a crop, its mask an RLE; None outside of it."""
    x0, y0, x1, y1 = frame
    left, top, right, bottom = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYXY_ABS)
    if min(right, x1) <= max(left, x0) or min(bottom, y1) <= max(top, y0):
        return None
    entry = dict(entry)
    entry["bbox"] = [left - x0, top - y0, right - x0, bottom - y0]
    entry["bbox_mode"] = BoxMode.XYXY_ABS
    mask = entry.get("segmentation")
    if isinstance(mask, dict):
        piece = Piece.from_rle(mask)
    elif mask:
        shifted = [(np.reshape(line, (-1, 2)) - (x0, y0)).reshape(-1).tolist() for line in mask]
        drawn = mask_util.merge(mask_util.frPyObjects(shifted, y1 - y0, x1 - x0))
        piece = Piece.of(mask_util.decode(drawn), x0, y0)
    else:
        return entry
    inside = piece.filled(frame)
    if not inside.any():
        return None
    entry["segmentation"] = mask_util.encode(np.asfortranarray(inside, dtype=np.uint8))
    return entry


def is_deep(path: str) -> bool:
    """Whether Pillow's 8 bits a channel lose something of an image, told from its header."""
    suffix = Path(path).suffix.lower()
    if suffix in TIFF_SUFFIXES:
        return is_deep_tiff(Path(path))
    if suffix != ".png":
        return False
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except OSError:
        return False  # what is broken is named on reading


def read_deep(path: str, image_format: str) -> np.ndarray:
    """An image as float32 `(H, W, C)` in the channels of `INPUT.FORMAT`: RGB, BGR or L.

    Raises:
        NormdetError: an image that cannot be read, holds NaN, or another format.
    """
    if image_format not in ("BGR", "RGB", "L"):
        raise NormdetError(f"INPUT.FORMAT {image_format!r}: images of 16 bits need BGR, RGB or L")
    # The file was chosen to be trained on: its size is the user's business.
    pixels = read_pages(Path(path), max_pixels=1 << 40)[0]
    pixels = np.ascontiguousarray(to_format(pixels.astype(np.float32), image_format))
    if not np.isfinite(pixels).all():
        raise NormdetError(f"{path} holds values that are not finite: give prepare a --window")
    return pixels


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper that `cfg` describes; detectron2's but for our own keys and images over 8 bits.

    With `INPUT.TILE`, training sees a random tile of each image; the test mapper gives the image
    whole and unresized, for :class:`normdet.medical.predict.TiledModel`.
    """
    if cfg.INPUT.TILE:
        return build_tile_mapper(cfg, is_train)
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return DeepMapper(cfg, is_train, augmentations=augmentations)


def build_tile_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper of `INPUT.TILE`.

    Raises:
        NormdetError: a config that crops or predicts in a way that does not go with tiles.
    """
    if cfg.INPUT.CROP.ENABLED:
        raise NormdetError("INPUT.TILE and INPUT.CROP.ENABLED both crop: set one of them")
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        raise NormdetError("INPUT.TILE is for boxes and masks, not for keypoints or proposals")
    if not is_train:
        return DeepMapper(cfg, is_train, augmentations=[])
    size = cfg.INPUT.TILE
    crop = T.RandomCrop("absolute", (size, size))
    mapper = TileMapper(
        cfg, is_train, augmentations=[crop, *build_augmentation(cfg, is_train)],
        recompute_boxes=cfg.MODEL.MASK_ON, instance_mask_format="bitmask",
    )  # fmt: skip
    return mapper
