"""Formats that are known and not read: each is refused by its name, with what to export instead."""

import re
from collections.abc import Callable
from pathlib import Path

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Files

_COCO = "export COCO JSON instead"
_KITTI = re.compile(r"[A-Z][A-Za-z_]+( -?\d+(\.\d+)?){14,15}\s*")


def _json(*keys: str, opening: str = "{[") -> Callable[[Files], list[Path]]:
    endings = (".json", ".jsonl", ".ndjson")
    return lambda files: files.json_with(*keys, opening=opening, endings=endings)


def _ending(*suffixes: str) -> Callable[[Files], list[Path]]:
    return lambda files: files.ending(*suffixes)


def _beginning(ending: str, pattern: str) -> Callable[[Files], list[Path]]:
    return lambda files: [
        path for path in files.ending(ending) if re.match(pattern, files.beginning(path))
    ]


def _shards(files: Files) -> list[Path]:
    return [path for path in files.all if re.search(r"\.tfrecords?(-\d+-of-\d+)?$", path.name)]


def _archives(files: Files) -> list[Path]:
    endings = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
    return [path for path in files.ending(*endings) if not path.name.lower().endswith(".nii.gz")]


def _kitti(files: Files) -> list[Path]:
    return [
        path
        for path in files.ending(".txt")
        if _KITTI.fullmatch(files.beginning(path).split("\n", 1)[0])
    ]


# What shows a format, its name, and what to do. Formats with clearer marks first.
_REFUSED: tuple[tuple[Callable[[Files], list[Path]], str, str], ...] = (
    (_shards, "TensorFlow's TFRecord", _COCO),
    (_json("segments_info", "annotations"), "COCO panoptic JSON", "take COCO instances JSON"),
    (_json("data_units", "label_hash"), "Encord's JSON", _COCO),
    (_json("jsonResponse"), "Kili's JSON", _COCO),
    (_json("segmentation_bitmap_url"), "Segments.ai's JSON", _COCO),
    (_json("regionId", "tagName"), "Azure Custom Vision's JSON",
     "export the data set by Azure Machine Learning as COCO JSON or JSON lines"),
    (_json("imageGcsUri"), "Vertex AI's JSON lines", _COCO),
    (_json("imgHeight", "imgWidth", "objects"), "Cityscapes' polygons",
     "convert them to COCO JSON with cityscapesScripts"),
    (_json("prefix", "suffix"), "PaliGemma's JSON lines", _COCO),
    (_json("annotations", "coordinates", "filename", opening="{"), "Dataloop's JSON", _COCO),
    (_beginning(".csv", r"filename\s*,(?!.*xmin)(\s*[^,\n]+,?)+\n[^,\n]+(\s*,\s*[01])+\s*(\n|$)"),
     "a table of the classes of whole images",
     "a detector needs boxes or masks: export an object detection format"),
    (_beginning(".csv", r"[^\n]*gs://"), "Vertex AI's table", _COCO),
    (_kitti, "KITTI's text files", "export COCO JSON, Pascal VOC or YOLO instead"),
    (_beginning(".txt", r"\d+,\d+(,-?\d+(\.\d+)?){4,8}\s*(\n|$)"), "MOT's text files", _COCO),
    (_json("images", "annotations"), "COCO JSON that lacks a list",
     "it needs the lists images, annotations and categories"),
    (_json("image_id", "category_id"), "a list of COCO results or annotations",
     "COCO JSON has the lists images, annotations and categories"),
    (_ending(".roi"), "ImageJ's regions", "save label images from ImageJ, or GeoJSON from QuPath"),
    (_ending(".mat"), "MATLAB's files", "save label images as TIFF or PNG instead"),
    (_ending(".parquet", ".arrow", ".lmdb", ".mdb"), "a data base of images",
     "save the images as files beside COCO JSON"),
    (_archives, "an archive", "unpack it first"),
)  # fmt: skip


def refuse(root: Path) -> None:
    """Name the format of a source that nothing could be read from, if it is known.

    Raises:
        NormdetError: it is one that is not read.
    """
    files = Files(root)
    for find, name, instead in _REFUSED:
        if found := find(files):
            raise NormdetError(f"{found[0]} is {name}, which is not read: {instead}")
