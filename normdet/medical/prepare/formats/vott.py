"""VoTT: a project's export, or the file that it keeps for each image."""

from pathlib import Path

from normdet.data.coco import read_json
from normdet.medical.prepare.formats.base import Builder, Files, Format, points


def find(files: Files) -> list[Path]:
    """Exports with assets; without one, the files of single assets."""
    exports = files.json_with("assets", "regions", opening="{")
    return exports or files.json_with("asset", "regions", opening="{")


def read(file: Path, out: Builder) -> None:
    """All images of an export, or the one of a file."""
    content = read_json(file)
    for entry in content["assets"].values() if "assets" in content else [content]:
        about = entry["asset"]
        size = about.get("size") or {}
        image = out.image(str(about["name"]), file, (size.get("height"), size.get("width")))
        for item in (entry.get("regions") or ()) if image else ():
            label = (item.get("tags") or [""])[0]
            box = item.get("boundingBox")
            if str(item.get("type")).upper() == "POLYGON":
                out.add(image, label, polygons=[points(item["points"])])
            elif box:
                place = [float(box[key]) for key in ("left", "top", "width", "height")]
                out.add(image, label, box=place)
            else:
                out.leave_out(f"regions of the kind {item.get('type')}")


FORMAT = Format("vott", "VoTT's JSON", find, read)
