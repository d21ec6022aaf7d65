"""CreateML's JSON, as LabelImg and Roboflow write it: boxes by their centres."""

from pathlib import Path

from normdet.data.coco import read_json
from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format


def find(files: Files) -> list[Path]:
    """Lists of images with coordinates."""
    return files.json_with("annotations", "coordinates", opening="[")


def read(file: Path, out: Builder) -> None:
    """All images of a file."""
    for entry in read_json(file):
        name = entry.get("image") or entry.get("imagefilename")
        if not isinstance(name, str):
            raise NormdetError(f"{file} is not CreateML's: an entry names no image")
        image = out.image(name, file)
        for item in entry.get("annotations") or () if image else ():
            place = item.get("coordinates") or {}
            try:
                x, y, width, height = (float(place[key]) for key in ("x", "y", "width", "height"))
            except (KeyError, TypeError, ValueError):
                raise NormdetError(f"{file} has coordinates that are not numbers") from None
            box = [x - width / 2, y - height / 2, width, height]
            out.add(image, item.get("label", ""), box=box)


FORMAT = Format("createml", "CreateML's JSON (LabelImg, Roboflow)", find, read)
