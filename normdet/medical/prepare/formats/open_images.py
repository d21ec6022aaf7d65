"""Open Images' tables: boxes as shares of the image (FiftyOne, CVAT)."""

import csv
import io
from pathlib import Path

from normdet.errors import NormdetError
from normdet.medical.prepare.formats.base import Builder, Files, Format, corners_box, text_of

_COLUMNS = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}


def find(files: Files) -> list[Path]:
    """CSV files whose head has the columns of boxes."""
    return [path for path in files.ending(".csv") if _COLUMNS <= {*_head(files.beginning(path))}]


def _head(text: str) -> list[str]:
    return [cell.strip().strip('"') for cell in text.split("\n", 1)[0].split(",")]


def read(file: Path, out: Builder) -> None:
    """All boxes of a table."""
    names = _names(out)
    rows = []
    for row in csv.DictReader(io.StringIO(text_of(file))):
        try:
            corners = [float(row[key]) for key in ("XMin", "YMin", "XMax", "YMax")]
        except (TypeError, ValueError) as error:
            raise NormdetError(f"{file} has a row that is not numbers") from error
        rows.append((row, corners))
    for row, shares in rows:
        image = out.image(str(row["ImageID"]), file)
        if image:
            sides = (image["width"], image["height"]) * 2
            box = corners_box(*(share * side for share, side in zip(shares, sides, strict=True)))
            label = names.get(row["LabelName"], row["LabelName"])
            out.add(image, label, box=box, crowd=row.get("IsGroupOf") == "1")


def _names(out: Builder) -> dict[str, str]:
    """The names of the classes by their codes, such as `/m/01g317`; read once."""
    if not hasattr(out, "open_images_names"):
        files = Files(out.root if out.root.is_dir() else out.root.parent)
        tables = [path for path in files.ending(".csv") if _has_names(path)]
        rows = [row for path in tables for row in csv.reader(io.StringIO(text_of(path)))]
        out.open_images_names = {row[0]: row[1] for row in rows if len(row) == 2}
        if any("object-segmentation" in path.name for path in files.ending(".csv")):
            out.notes.append(f"{out.root}: the masks of Open Images are not read, its boxes are")
    return out.open_images_names


def _has_names(path: Path) -> bool:
    return "class-descriptions" in path.name or path.name == "classes.csv"


FORMAT = Format("open-images", "Open Images' tables of boxes", find, read)
