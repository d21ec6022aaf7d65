"""Azure Machine Learning's JSON lines: an image a line, boxes and polygons as its shares."""

from pathlib import Path

from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, json_values

# What one of the first labels has.
_SHAPES = ("topX", "polygon")


def find(files: Files) -> list[Path]:
    """Lines with an image's address and labels."""
    endings = (".jsonl", ".ndjson", ".json")
    found = files.json_with("image_url", "label", opening="{", endings=endings)
    return [path for path in found if any(f'"{key}"' in files.beginning(path) for key in _SHAPES)]


def read(file: Path, out: Builder) -> None:
    """All images of a file."""
    for row in json_values(file):
        about = row.get("image_details") or {}
        size = [int(float(about.get(key) or 0)) for key in ("height", "width")]
        image = out.image(str(row["image_url"]), file, size)
        for item in row["label"] if image else ():
            sides, label = (image["width"], image["height"]), item.get("label", "")
            crowd = str(item.get("isCrowd", "")).lower() in ("true", "1")
            if "polygon" in item:
                lines = [
                    [float(share) * sides[place % 2] for place, share in enumerate(line)]
                    for line in item["polygon"]
                ]
                out.add(image, label, polygons=lines, crowd=crowd)
            else:
                shares = (float(item[key]) for key in ("topX", "topY", "bottomX", "bottomY"))
                corners = [share * side for share, side in zip(shares, sides * 2, strict=True)]
                out.add(image, label, box=corners_box(*corners), crowd=crowd)


FORMAT = Format("azure-ml", "Azure Machine Learning's JSON lines", find, read)
