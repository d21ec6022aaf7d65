"""Datasets by a short text: `coco:ANNOTATIONS:IMAGES`, `voc:IMAGESET`, `quickstart:train`."""

from normdet.data.augmentation import build_augmentation
from normdet.data.coco import load_coco
from normdet.data.mapper import build_mapper
from normdet.data.register import image_files, register_datasets
from normdet.data.voc import load_voc

__all__ = [
    "build_augmentation",
    "build_mapper",
    "image_files",
    "load_coco",
    "load_voc",
    "register_datasets",
]
