"""V7's Darwin JSON: a file for each image."""

from pathlib import Path

import numpy as np

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import (
    Builder,
    Files,
    Format,
    ellipse,
    points,
    rle_of,
    same_stem,
)


def find(files: Files) -> list[Path]:
    """JSON files with an item (version 2) or an image (version 1) of a data set."""
    return [
        path
        for path in files.json_with("annotations", opening="{")
        if '"slots"' in (begin := files.beginning(path))
        or ('"image"' in begin and '"seq"' in begin)
        or ('"image"' in begin and '"dataset"' in begin and '"filename"' in begin)
    ]


def read(file: Path, out: Builder) -> None:
    """One image's annotations."""
    content = read_json(file)
    name, size = _image(content)
    image = out.image(name or same_stem(file), file, size)
    if image is None:
        return
    names = {one.get("id"): one.get("name", "") for one in content["annotations"]}
    for item in content["annotations"]:
        label, box = item.get("name", ""), item.get("bounding_box")
        if "frames" in item:
            raise NormdetError(f"{file} is of a video: export its frames as images")
        if polygon := item.get("polygon"):
            paths = polygon.get("paths") or [
                polygon["path"], *(polygon.get("additional_paths") or ())
            ]  # fmt: skip
            out.add(image, label, polygons=[points(path) for path in paths])
        elif oval := item.get("ellipse"):
            centre, radius = points([oval["center"]]), points([oval["radius"]])
            turn = float(np.degrees(oval.get("angle") or 0))
            out.add(image, label, polygons=[ellipse(*centre, *radius, turn)])
        elif layer := item.get("raster_layer"):
            _add_layer(out, image, layer, names, file)
        elif box:
            out.add(image, label, box=[float(box[key]) for key in ("x", "y", "w", "h")])
        elif "mask" not in item and "tag" not in item:  # a mask's pixels are in the layer
            out.leave_out("annotations of another kind")


def _image(content: dict) -> tuple[str, tuple]:
    if "item" in content:
        (slot, *others) = content["item"]["slots"]
        if others:
            raise NormdetError(f"{content['item']['name']} shows several images: export each alone")
        files = slot.get("source_files") or [{}]
        first = files[0] if isinstance(files[0], dict) else {"file_name": files[0]}
        name = content["item"].get("name") or first.get("file_name")
        return str(name or ""), (slot.get("height"), slot.get("width"))
    about = content["image"]
    name = about.get("original_filename") or about["filename"]
    return str(name), (about.get("height"), about.get("width"))


def _add_layer(out: Builder, image: dict, layer: dict, names: dict, file: Path) -> None:
    """The masks of a layer, in which pairs of a value and its count run along the rows."""
    values, counts = layer["dense_rle"][::2], layer["dense_rle"][1::2]
    if min(counts) < 0 or sum(counts) != image["height"] * image["width"]:
        raise NormdetError(f"{file} has a layer of masks that does not fill its image")
    pixels = np.repeat(np.array(values, np.int64), counts).reshape(image["height"], image["width"])
    for key, value in layer["mask_annotation_ids_mapping"].items():
        if (mask := pixels == value).any():
            out.add(image, names.get(key, ""), rle=rle_of(mask))


FORMAT = Format("darwin", "V7's Darwin JSON for each image", find, read)
