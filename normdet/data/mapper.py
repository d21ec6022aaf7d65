"""detectron2's DatasetMapper with our augmentations, also for images of more than 8 bits."""

import copy
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from PIL import Image

from normdet.data.augmentation import build_augmentation
from normdet.data.readers.image import TIFF_SUFFIXES, read_pages
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


def is_deep(path: str) -> bool:
    """Whether an image has more than 8 bits a channel, told from its header."""
    if Path(path).suffix.lower() not in (".png", *TIFF_SUFFIXES):
        return False
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except OSError:
        # Pillow knows no TIFF of several deep channels; what is broken is named on reading.
        return Path(path).suffix.lower() in TIFF_SUFFIXES


def read_deep(path: str, image_format: str) -> np.ndarray:
    """An image as float32 `(H, W, 3)` in the channel order of `INPUT.FORMAT`, RGB or BGR.

    Raises:
        NormdetError: an image that cannot be read, holds NaN, or another format.
    """
    if image_format not in ("BGR", "RGB"):
        raise NormdetError(f"INPUT.FORMAT {image_format!r}: images of 16 bits need BGR or RGB")
    # The file was chosen to be trained on: its size is the user's business.
    pixels = read_pages(Path(path), max_pixels=1 << 40)[0]
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    elif image_format == "BGR":
        pixels = pixels[..., ::-1]
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise NormdetError(f"{path} holds values that are not finite: give prepare a --window")
    return pixels


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper that `cfg` describes; detectron2's but for `RANDOM_D4` and images over 8 bits."""
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return DeepMapper(cfg, is_train, augmentations=augmentations)
