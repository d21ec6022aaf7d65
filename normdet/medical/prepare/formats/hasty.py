"""Hasty's JSON: one file for a project."""

from pathlib import Path

from normdet.data.coco import read_json
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, flat


def find(files: Files) -> list[Path]:
    """Projects with classes and images."""
    return files.json_with("project_name", "label_classes", "images", opening="{")


def read(file: Path, out: Builder) -> None:
    """All images of a project."""
    content = read_json(file)
    out.declare(entry["class_name"] for entry in content["label_classes"])
    for entry in content["images"]:
        folder, name = entry.get("dataset_name"), entry["image_name"]
        names = [f"{folder}/{name}", name] if folder else [name]
        known = [one for one in names if out.finder.knows(one, file)]
        size = entry.get("height"), entry.get("width")
        image = out.image(known[0] if known else name, file, size)
        for item in (entry.get("labels") or ()) if image else ():
            label, box = item.get("class_name", ""), item.get("bbox")
            if item.get("polygon"):
                out.add(image, label, polygons=[flat(item["polygon"])])
            elif box:
                if item.get("mask"):
                    out.leave_out("masks of objects, whose boxes are taken")
                out.add(image, label, box=corners_box(*box))
            else:
                out.leave_out("labels without an area")


FORMAT = Format("hasty", "Hasty's JSON", find, read)
