"""detectron2's DatasetMapper with our augmentations."""

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from normdet.data.augmentation import build_augmentation


def build_mapper(cfg: CfgNode, is_train: bool) -> DatasetMapper:
    """The mapper that `cfg` describes; the same as detectron2's unless `INPUT.RANDOM_D4` is set."""
    augmentations = build_augmentation(cfg, is_train)
    if is_train and cfg.INPUT.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    return DatasetMapper(cfg, is_train, augmentations=augmentations)
