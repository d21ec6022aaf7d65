"""A record of a model's input and classes, beside its checkpoints, for `normdet predict`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from normdet.errors import NormdetError

FILE = "input.json"
# The file that `normdet prepare` leaves beside its folder of images.
PREPARED = "fingerprint.json"


@dataclass(frozen=True)
class InputRecord:
    """How images become the model's input, and the names of its classes.

    Attributes:
        classes: names, in the order of the model's classes.
        category_ids: the annotation file's id of each.
        window: as :func:`normdet.data.window.parse_window` reads it.
        axis: the one along which volumes are cut.
        neighbours: see :func:`normdet.medical.readers.read_slices`.
        channels, planes: as :func:`normdet.data.choice.parse_choice` reads them.
    """

    classes: list[str]
    category_ids: list[int]
    window: str = "auto"
    axis: str = "axial"
    neighbours: int = 0
    channels: str = ""
    planes: str = "all"


def write_record(cfg: CfgNode, folder: Path) -> None:
    """Write the record of the registered datasets of `cfg` into `folder`.

    The window is that of the `fingerprint.json` that `normdet prepare` left in `DATASETS.ROOT`.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    classes = list(metadata.get("thing_classes", []))
    ids = metadata.get("thing_dataset_id_to_contiguous_id", {})
    ids = sorted(ids, key=ids.get) or list(range(1, len(classes) + 1))
    record = InputRecord(classes, ids, **_made(cfg))
    (folder / FILE).write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")


def read_record(cfg: CfgNode, folder: Path) -> InputRecord:
    """The record in `folder`; without one, numbered classes and the window of `DATASETS.ROOT`.

    Raises:
        NormdetError: the record cannot be read, or has another number of classes.
    """
    part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet") else "ROI_HEADS"
    count = cfg.MODEL[part].NUM_CLASSES
    file = folder / FILE
    if not file.is_file():
        names = [f"class {number}" for number in range(1, count + 1)]
        return InputRecord(names, list(range(1, count + 1)), **_made(cfg))
    try:
        record = InputRecord(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise NormdetError(f"{file} cannot be read: {error}") from error
    if len(record.classes) != count or len(record.category_ids) != count:
        raise NormdetError(
            f"{file} names {len(record.classes)} classes, MODEL.{part}.NUM_CLASSES is {count}"
        )
    return record


def window_of(file: Path, window: str) -> str:
    """The window to apply: `none` for files that normdet prepared, which are windowed already."""
    return "none" if (file.parent.parent / PREPARED).is_file() else window


def _made(cfg: CfgNode) -> dict:
    """How the images of `DATASETS.ROOT` were made, by `normdet prepare` or by the config."""
    taken = {"channels": cfg.INPUT.CHANNELS, "planes": cfg.INPUT.PLANES}
    return taken | _prepared(Path(cfg.DATASETS.ROOT or "."))


def _prepared(root: Path) -> dict:
    """The settings of `normdet prepare` for a data set; {} if it did not make it."""
    try:
        content = json.loads((root / PREPARED).read_text())
    except (OSError, ValueError):
        return {}
    kinds = {"window": str, "axis": str, "neighbours": int, "channels": str, "planes": str}
    known = content if isinstance(content, dict) else {}
    return {key: known[key] for key, kind in kinds.items() if isinstance(known.get(key), kind)}
