"""detectron2's DatasetMapper with our augmentations and our reader of images."""

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from normdet.data.augmentation import OneSizeABatch, build_augmentation
from normdet.data.channels import to_format
from normdet.data.choice import DEFAULT, Choice, parse_choice
from normdet.data.ignored import PartlyIgnored
from normdet.data.image_file import read_header, read_image
from normdet.data.rle import Piece
from normdet.errors import NormdetError


class Mapper(DatasetMapper):
    """detectron2's mapper with our reader of images.

    Images of more than 8 bits (16-bit PNG, and TIFF of 16 bits, 32 bits or float, as `normdet
    prepare --window none` writes them) reach the model in float32. `MODEL.PIXEL_MEAN` and
    `PIXEL_STD` are then in their units.

    Args:
        choice: of channels and planes, if a file has several.
    """

    def __init__(self, cfg: CfgNode, is_train: bool, *, choice: Choice = DEFAULT, **options):
        super().__init__(cfg, is_train, **options)
        self._choice = choice
        self._ignore_crowds = cfg.INPUT.IGNORE_CROWDS

    def __call__(self, dataset_dict: dict) -> dict:
        """Read, augment and annotate one image; records of one `batch` number get one size."""
        batch = dataset_dict.get("batch")
        for augmentation in self.augmentations.augs:
            if isinstance(augmentation, OneSizeABatch):
                augmentation.batch = batch
        if "sem_seg_file_name" in dataset_dict:
            return super().__call__(dataset_dict)
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_input(dataset_dict["file_name"], self.image_format, self._choice)
        detection_utils.check_image_size(dataset_dict, image)
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.as_tensor(image)
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, image.shape[1:], transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            dataset_dict.pop("ignore", None)
        elif "annotations" in dataset_dict:
            ignored = self._ignored(dataset_dict, transforms)
            self._transform_annotations(dataset_dict, transforms, image.shape[1:])
            if ignored is not None:
                instances = dataset_dict["instances"]
                dataset_dict["instances"] = PartlyIgnored.of(instances, ignored)
        return dataset_dict

    def _ignored(self, dataset_dict: dict, transforms: T.Transform) -> torch.Tensor | None:
        """The augmented image's pixels that are neither object nor background: `(H, W)` bool."""
        height, width = dataset_dict["height"], dataset_dict["width"]
        rles = [dataset_dict.pop("ignore")] if "ignore" in dataset_dict else []
        if self._ignore_crowds:
            crowds = (entry for entry in dataset_dict["annotations"] if entry.get("iscrowd", 0))
            rles += [_rle(entry, height, width) for entry in crowds]
        if not rles:
            return None
        mask = np.ascontiguousarray(mask_util.decode(mask_util.merge(rles)))
        seen = transforms.apply_segmentation(mask)
        return torch.as_tensor(np.ascontiguousarray(seen)) > 0


def _rle(entry: dict, height: int, width: int) -> dict:
    """An annotation's mask, or its box if it has none."""
    mask = entry.get("segmentation")
    if isinstance(mask, dict):
        return mask
    if not mask:
        box = BoxMode.convert(entry["bbox"], entry["bbox_mode"], BoxMode.XYWH_ABS)
        return mask_util.frPyObjects(np.array([box], float), height, width)[0]
    return mask_util.merge(mask_util.frPyObjects(mask, height, width))


class TileMapper(Mapper):
    """A mapper whose first augmentation crops; masks are drawn for the crop alone.

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
    """An annotation in coordinates of a crop, with its mask as an RLE; None outside the crop."""
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


def is_deep(path: str, choice: Choice = DEFAULT) -> bool:
    """Whether an image has more than 8 bits per channel, by its header."""
    try:
        return read_header(Path(path), choice=choice).deep
    except NormdetError:
        return False  # reading it will report the damage


def read_input(path: str, image_format: str, choice: Choice = DEFAULT) -> np.ndarray:
    """Read an image `(H, W, C)` in the channels of `INPUT.FORMAT`: uint8, or float32 if it is deep.

    Raises:
        NormdetError: the image cannot be read, is a stack, or holds NaN.
    """
    pixels = read_image(Path(path), choice)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise NormdetError(f"{path} holds values that are not finite: give prepare a --window")
    return np.ascontiguousarray(to_format(pixels, image_format))


def choice_of(cfg: CfgNode) -> Choice:
    """The channels and planes that a config asks for."""
    return parse_choice(cfg.INPUT.CHANNELS, cfg.INPUT.PLANES)


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper of `cfg`: detectron2's, extended by our keys and by images of more than 8 bits.

    With `INPUT.TILE`, training sees a random tile of each image; the test mapper gives the image
    whole and unresized, for :class:`normdet.evaluation.tiled_model.TiledModel`.
    """
    if cfg.INPUT.TILE:
        return build_tile_mapper(cfg, is_train)
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return Mapper(cfg, is_train, choice=choice_of(cfg), augmentations=augmentations)


def build_tile_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper of `INPUT.TILE`.

    Raises:
        NormdetError: the config crops or predicts in a way that does not work with tiles.
    """
    if cfg.INPUT.CROP.ENABLED:
        raise NormdetError("INPUT.TILE and INPUT.CROP.ENABLED both crop: set one of them")
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        raise NormdetError("INPUT.TILE is for boxes and masks, not for keypoints or proposals")
    if not is_train:
        return Mapper(cfg, is_train, choice=choice_of(cfg), augmentations=[])
    size = cfg.INPUT.TILE
    crop = T.RandomCrop("absolute", (size, size))
    mapper = TileMapper(
        cfg, is_train, choice=choice_of(cfg),
        augmentations=[crop, *build_augmentation(cfg, is_train)],
        recompute_boxes=cfg.MODEL.MASK_ON, instance_mask_format="bitmask",
    )  # fmt: skip
    return mapper
