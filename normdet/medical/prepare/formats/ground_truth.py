"""SageMaker Ground Truth's manifests: an image a line, boxes by pixels."""

from pathlib import Path

from normdet.medical.prepare.formats.base import Builder, Files, Format, json_values


def find(files: Files) -> list[Path]:
    """Lines with a source and a map of classes."""
    endings = (".manifest", ".jsonl", ".json")
    return files.json_with("source-ref", "class-map", opening="{", endings=endings)


def read(file: Path, out: Builder) -> None:
    """All images of a manifest."""
    for row in json_values(file):
        jobs = {key: value for key, value in row.items() if f"{key}-metadata" in row}
        boxes = [key for key, value in jobs.items() if isinstance(value, dict)]
        boxes = [key for key in boxes if "annotations" in jobs[key]]
        sizes = jobs[boxes[-1]].get("image_size") or [{}] if boxes else [{}]
        size = sizes[0].get("height"), sizes[0].get("width")
        image = out.image(str(row["source-ref"]), file, size)
        if image and boxes:  # the last job corrects those before
            names = row[f"{boxes[-1]}-metadata"].get("class-map") or {}
            for item in jobs[boxes[-1]]["annotations"]:
                label = names.get(str(item["class_id"]), f"class {item['class_id']}")
                box = [float(item[key]) for key in ("left", "top", "width", "height")]
                out.add(image, label, box=box)


FORMAT = Format("ground-truth", "SageMaker Ground Truth's manifests", find, read)
