"""Labelbox's exports: NDJSON with a line an image, or the older list of labels."""

from collections.abc import Iterable
from pathlib import Path

from normdet.medical.prepare.formats.base import Builder, Files, Format, json_values, points


def find(files: Files) -> list[Path]:
    """Lines with a data row, and lists of labelled data."""
    endings = (".ndjson", ".jsonl", ".json")
    return [
        *files.json_with("data_row", "projects", opening="{", endings=endings),
        *files.json_with("Labeled Data", "Label", opening="["),
    ]


def read(file: Path, out: Builder) -> None:
    """All images of an export."""
    remote = 0
    for row in json_values(file):
        name, size, objects = _old(row) if "Label" in row else _new(row)
        image = out.image(name, file, size)
        for item in objects if image else ():
            label = item.get("name") or item.get("title") or item.get("value") or ""
            box = item.get("bounding_box") or item.get("bbox")
            if polygon := item.get("polygon"):
                out.add(image, label, polygons=[points(polygon)])
            elif box:
                place = [float(box[key]) for key in ("left", "top", "width", "height")]
                out.add(image, label, box=place)
            elif "mask" in item or "composite_mask" in item or "instanceURI" in item:
                remote += 1
            else:
                out.leave_out(f"objects of the kind {item.get('annotation_kind', 'point or line')}")
    if remote:
        out.report(
            f"{file}: left out {remote} masks, which Labelbox holds at a web address: export "
            "polygons, or label images"
        )


def _new(row: dict) -> tuple[str, tuple | None, Iterable[dict]]:
    about, media = row["data_row"], row.get("media_attributes") or {}
    labels = [label for project in row["projects"].values() for label in project["labels"]]
    # The first label is the one that was accepted; others are of a consensus.
    objects = (labels[0].get("annotations") or {}).get("objects") or [] if labels else []
    name = about.get("external_id") or about.get("global_key") or about.get("row_data")
    return str(name), (media.get("height"), media.get("width")), objects


def _old(row: dict) -> tuple[str, tuple | None, Iterable[dict]]:
    label = row["Label"] if isinstance(row["Label"], dict) else {}  # "Skip" otherwise
    return str(row.get("External ID") or row["Labeled Data"]), None, label.get("objects") or []


FORMAT = Format("labelbox", "Labelbox's NDJSON or JSON", find, read)
