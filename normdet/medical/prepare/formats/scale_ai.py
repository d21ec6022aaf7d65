"""Scale AI's tasks as JSON."""

from pathlib import Path

from normdet.medical.prepare.formats.base import Builder, Files, Format, json_values, points


def find(files: Files) -> list[Path]:
    """Tasks with a response."""
    return files.json_with("task_id", "response", endings=(".json", ".jsonl", ".ndjson"))


def read(file: Path, out: Builder) -> None:
    """All tasks of a file."""
    for task in json_values(file):
        image = out.image(str((task.get("params") or task)["attachment"]), file)
        for item in (task["response"].get("annotations") or ()) if image else ():
            label, kind = item.get("label", ""), item.get("type")
            if kind == "polygon":
                out.add(image, label, polygons=[points(item["vertices"])])
            elif "left" in item:
                box = [float(item[key]) for key in ("left", "top", "width", "height")]
                out.add(image, label, box=box)
            else:
                out.leave_out(f"annotations of the kind {kind}")


FORMAT = Format("scale", "Scale AI's tasks", find, read)
