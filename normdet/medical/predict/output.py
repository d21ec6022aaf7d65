"""The files of `normdet predict`: a record for each image when it is done, tables at the end."""

import csv
import io
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from normdet.data.input_record import InputRecord
from normdet.data.slices import Slice
from normdet.errors import NormdetError
from normdet.evaluation.tiles import Detection
from normdet.files.atomic import TEMPORARY_SUFFIX, atomic_file
from normdet.files.lock import hold

# Of 9: outlines on an image are no smaller at 6, and take thrice the time.
_COMPRESSION = 3
FOLDERS = RECORDS, OVERLAYS, LABELS = "records", "overlays", "labels"


class Output:
    """An output folder, in which every file is whole however the run ended.

    Args:
        folder: made if missing.
        settings: those that change predictions; a folder made with other settings is refused.
        record: names of the classes.
        masks: whether the model predicts masks; without them there are no label images.

    Raises:
        NormdetError: the folder cannot be used, or another command is using it.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], record: InputRecord, masks: bool = True
    ):
        self.folder = folder
        self._record = record
        self._masks = masks
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("wb")
            if not hold(self._lock):
                raise NormdetError(f"--out {folder}: another `normdet predict` is at work there")
            for name in (RECORDS, OVERLAYS, *([LABELS] if masks else [])):
                (folder / name).mkdir(exist_ok=True)
                for leftover in (folder / name).glob(f".*{TEMPORARY_SUFFIX}"):
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise NormdetError(f"--out {folder} cannot be made: {error.strerror}") from error
        self._check_settings(json.loads(json.dumps(settings)))

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.close()

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        file = self.folder / "settings.json"
        if not file.exists():
            self._write(file, json.dumps(settings, indent=1).encode())
            return
        before = _read_json(file)
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            shown = ", ".join(f"{k} was {before.get(k)} and is {settings[k]}" for k in changed[:3])
            raise NormdetError(
                f"--out {self.folder} holds predictions made otherwise ({shown}): "
                "give another folder, or --restart to make them anew"
            )

    def done(self, name: str, stamp: str) -> bool:
        """Whether the image of that name is predicted, and its file has not changed since."""
        file = self._record_file(name)
        return file.is_file() and _read_json(file).get("stamp") == stamp

    def write(
        self,
        image: Slice,
        stamp: str,
        file_name: str,
        detections: Sequence[Detection],
        overlay: Image.Image,
    ) -> None:
        """Write one image's results. Its record comes last, as a sign that the other files exist.

        Raises:
            NormdetError: the disk refuses.
        """
        height, width = image.pixels.shape[:2]
        picture = io.BytesIO()
        overlay.save(picture, "PNG", compress_level=_COMPRESSION)
        self._write(self.folder / OVERLAYS / f"{image.name}.png", picture.getvalue())
        if self._masks:
            label_file = self.folder / LABELS / f"{image.name}.tif"
            self._write(label_file, _label_tiff(detections, height, width, image.spacing))
        content = {
            "stamp": stamp,
            "name": image.name,
            "file_name": file_name,
            "height": height,
            "width": width,
            "spacing": image.spacing,
            "objects": [self._object(one, height, width) for one in detections],
        }
        text = json.dumps(content, ensure_ascii=False).encode()
        self._write(self._record_file(image.name), text)

    def gather(self, names: Sequence[str]) -> dict[str, int]:
        """Write the tables and COCO files of the images in `names`; count their objects by class.

        `images.json` is a COCO file without annotations; `predictions.json` is COCO's list of
        results: `COCO("images.json").loadRes("predictions.json")` reads both.
        """
        images, totals = [], dict.fromkeys(self._record.classes, 0)
        counts, objects, predictions = _Table(), _Table(), []
        for number, name in enumerate(names, start=1):
            content = _read_json(self._record_file(name))
            images.append(
                {"id": number, **{k: content[k] for k in ("file_name", "name", "width", "height")}}
            )
            predictions += [
                json.dumps({"image_id": number, **entry}) for entry in content["objects"]
            ]
            counts.add(self._counts(content, totals))
            for row in self._rows(content):
                objects.add(row)
        categories = [
            {"id": key, "name": name}
            for key, name in zip(self._record.category_ids, self._record.classes, strict=True)
        ]
        dataset = {"images": images, "categories": categories, "annotations": []}
        text = json.dumps(dataset, indent=1, ensure_ascii=False)
        self._write(self.folder / "images.json", text.encode())
        self._write(
            self.folder / "predictions.json", f"[{f',{chr(10)}'.join(predictions)}]\n".encode()
        )
        self._write(self.folder / "counts.csv", counts.text())
        self._write(self.folder / "objects.csv", objects.text())
        return totals

    def _object(self, one: Detection, height: int, width: int) -> dict:
        entry = one.as_coco(height, width)
        x, y, across, down = (round(value, 2) for value in entry["bbox"])
        return entry | {
            "category_id": self._record.category_ids[one.category],
            "bbox": [x, y, across, down],
            "score": round(one.score, 5),
            "area": one.piece.area if one.has_mask else round(across * down, 2),
        }

    def _counts(self, content: dict, totals: dict[str, int]) -> dict[str, Any]:
        names = dict(zip(self._record.category_ids, self._record.classes, strict=True))
        objects = content["objects"]
        areas = [entry["area"] for entry in objects]
        row = {
            "image": content["name"],
            "width": content["width"],
            "height": content["height"],
            "objects": len(objects),
        }
        for key, name in names.items():
            count = sum(entry["category_id"] == key for entry in objects)
            row[f"count {name}"] = count
            totals[name] += count
        mm2 = _pixel_mm2(content)
        for label, measure in (
            ("mean", statistics.fmean), ("median", statistics.median), ("total", sum),
        ):  # fmt: skip
            value = measure(areas) if areas else (0 if label == "total" else None)
            row[f"{label} area px"] = value and round(value, 2)
            row[f"{label} area mm2"] = None if mm2 is None or value is None else value * mm2
        scores = [entry["score"] for entry in objects]
        row["mean score"] = round(statistics.fmean(scores), 4) if scores else None
        return row

    def _rows(self, content: dict) -> Iterator[dict[str, Any]]:
        names = dict(zip(self._record.category_ids, self._record.classes, strict=True))
        mm2 = _pixel_mm2(content)
        for label, entry in enumerate(content["objects"], start=1):
            x, y, width, height = entry["bbox"]
            yield {
                "image": content["name"],
                "label": label,
                "class": names[entry["category_id"]],
                "score": entry["score"],
                "x": x,
                "y": y,
                "width": width,
                "height": height,
                "area px": entry["area"],
                "area mm2": None if mm2 is None else entry["area"] * mm2,
            }

    def _record_file(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        try:
            with atomic_file(path) as file:
                file.write(content)
        except OSError as error:
            raise NormdetError(f"{path} cannot be written: {error.strerror}") from error


def forget(folder: Path) -> None:
    """Remove from `folder` what earlier runs wrote there, and nothing else."""
    if not folder.is_dir():
        return
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("settings.json", "images.json", "predictions.json", "counts.csv", "objects.csv"):
        (folder / name).unlink(missing_ok=True)


class _Table:
    """Rows of equal keys as CSV, numbers rounded to six digits."""

    def __init__(self):
        self._file = io.StringIO(newline="")
        self._writer: csv.DictWriter | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(
            {key: f"{v:.6g}" if "mm2" in key and v is not None else v for key, v in row.items()}
        )

    def text(self) -> bytes:
        return self._file.getvalue().encode()


def _label_tiff(
    detections: Sequence[Detection], height: int, width: int, spacing: Sequence[float] | None
) -> bytes:
    """A label image: pixels hold the object's place in the list, from 1; better scores on top."""
    kind = np.uint16 if len(detections) < 65536 else np.uint32
    labels = np.zeros((height, width), kind)
    for number in range(len(detections), 0, -1):
        piece = detections[number - 1].piece
        x0, y0, x1, y1 = piece.box
        labels[y0:y1, x0:x1][piece.mask] = number
    options: dict[str, Any] = {}
    if spacing:
        rows, columns = spacing[:2]
        options = {"resolution": (10 / columns, 10 / rows), "resolutionunit": "CENTIMETER"}
    file = io.BytesIO()
    tifffile.imwrite(file, labels, compression="zlib", photometric="minisblack", **options)
    return file.getvalue()


def _pixel_mm2(content: Mapping[str, Any]) -> float | None:
    spacing = content["spacing"]
    return spacing[0] * spacing[1] if spacing else None


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise NormdetError(f"{file} cannot be read: {error}; --restart makes all anew") from error
    if not isinstance(content, dict):
        raise NormdetError(f"{file} is not one of normdet's: --restart makes all anew")
    return content
