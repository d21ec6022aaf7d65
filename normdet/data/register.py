"""Datasets named in the config, registered with detectron2 under the text that names them."""

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from normdet.data import quickstart
from normdet.data.check import check_images
from normdet.data.coco import load_coco
from normdet.data.mapper import choice_of, is_deep
from normdet.data.records import MAX_BOX_FAULTS, Dataset, warn_dropped
from normdet.data.split import split
from normdet.data.voc import load_voc
from normdet.errors import NormdetError
from normdet.files.faults import Report

logger = logging.getLogger(__name__)

# The most faults of a dataset that a message lists.
_SHOWN_FAULTS = 20
FORMS = "coco:ANNOTATIONS.json:IMAGE_DIR, voc:IMAGESET, quickstart:train or quickstart:test"


def register_datasets(cfg: CfgNode) -> None:
    """Read, check and register every dataset that `cfg.DATASETS.TRAIN` and `.TEST` describe.

    A text is one of `coco:ANNOTATIONS.json:IMAGE_DIR`, `voc:IMAGESET` (an image set of the folder
    `DATASETS.ROOT`, or `voc:FOLDER/IMAGESET`), `quickstart:train` and `quickstart:test`, or a part
    of one of them by image: `split:val:0.2:TEXT` and the rest, `split:train:0.2:TEXT`. Relative
    paths start at `DATASETS.ROOT`. Names that detectron2 knows stay its own; for those only the
    files and the headers of their images are checked. Costs one reading of every annotation file.

    Raises:
        NormdetError: a name is neither, data is faulty, or the model of `cfg` cannot take the data
            (number of classes, masks).
    """
    for key in ("TRAIN", "TEST"):
        for text in cfg.DATASETS[key]:
            if is_described(text):
                where = f"DATASETS.{key} {text!r}"
                dataset = _checked(text, cfg, where, train=key == "TRAIN")
                _check(cfg, where, dataset, train=key == "TRAIN")
                _register(text, dataset)
            elif text in DatasetCatalog.list():
                _check_registered(text, cfg, f"DATASETS.{key} {text!r}")
            else:
                raise NormdetError(
                    f"DATASETS.{key} names {text!r}, which is neither a dataset registered with "
                    f"detectron2 nor one of {FORMS}"
                )


def is_described(text: str) -> bool:
    """Whether a dataset's name states its files in our form, such as `coco:FILE:FOLDER`."""
    return text.partition(":")[0] in _READERS


def image_files(text: str, root: str | Path = "") -> list[Path]:
    """The images of a dataset, for any kind of annotations.

    Args:
        text: as in `DATASETS.TRAIN`.
        root: the folder that relative paths start from, `DATASETS.ROOT`.

    Raises:
        NormdetError: as :func:`register_datasets`, but for what concerns the model.
    """
    if is_described(text):
        records = _read(text, Path(root)).records
    elif text in DatasetCatalog.list():
        _check_files(text)
        records = DatasetCatalog.get(text)
    else:
        raise NormdetError(
            f"{text!r} is neither a dataset registered with detectron2 nor one of {FORMS}"
        )
    return [Path(record["file_name"]) for record in records]


def _checked(text: str, cfg: CfgNode, where: str, train: bool) -> Dataset:
    """Check that no image of a dataset would end the training.

    Raises:
        NormdetError: naming all bad images at once.
    """
    faults: list[str] = []
    # A test set may be used as it is, since others compare with it; its faults are reported.
    reading = Reading(faults.append, cfg.DATASETS.MAX_BOX_FAULTS if train else 1.0)
    dataset = _read(text, Path(cfg.DATASETS.ROOT), reading)
    # One process checks, and all get the result.
    headers = None
    if comm.is_main_process():
        headers = check_images(dataset.records, choice_of(cfg)) if not faults else []
    _refuse(faults + comm.all_gather(headers)[0], where)
    for note in dataset.notes:
        logger.warning("%s", note)
    if dataset.dropped:
        total = sum(len(record["annotations"]) for record in dataset.records)
        warn_dropped(dataset.dropped, total + len(dataset.dropped), Path(text))
    return dataset


def _refuse(faults: list[str], where: str) -> None:
    if not faults:
        return
    shown = faults[:_SHOWN_FAULTS]
    more = len(faults) - len(shown)
    lines = "".join(f"\n  {sentence}" for sentence in shown)
    raise NormdetError(
        f"{where} cannot be trained on or measured as it is, {len(faults)} faults:{lines}"
        + (f"\n  and {more} more" if more else "")
    )


def _check_registered(name: str, cfg: CfgNode, where: str) -> None:
    """Check a dataset that detectron2 or the user registered, as one of ours."""
    _check_files(name)
    headers = None
    if comm.is_main_process():
        # Files that are fetched from elsewhere are checked when they arrive.
        local = [
            record
            for record in DatasetCatalog.get(name)
            if record.get("file_name") and "://" not in str(record["file_name"])
        ]
        headers = check_images(local, choice_of(cfg))
    _refuse(comm.all_gather(headers)[0], where)


def dataset_places(cfg: CfgNode) -> list[Path]:
    """The annotation files and folders of images that `cfg` names, whether or not they exist."""
    root, places = Path(cfg.DATASETS.ROOT), []
    for text in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        while text.startswith("split:"):
            text = text.split(":", 3)[-1]
        scheme, _, rest = text.partition(":")
        if scheme == "coco":
            places += [root / part for part in rest.split(":", 1)]
        elif scheme == "voc":
            places.append((root / rest).parent)
        elif text in MetadataCatalog.list():
            metadata = MetadataCatalog.get(text)
            known = (metadata.get(key) for key in ("json_file", "image_root"))
            places += [Path(path) for path in known if path and "://" not in path]
    return list(dict.fromkeys(places))


@dataclass(frozen=True)
class Reading:
    """How datasets are read: what is done about faults, and how many boxes may disagree."""

    report: Report | None = None
    max_box_faults: float = MAX_BOX_FAULTS


def _coco(rest: str, root: Path, reading: Reading) -> Dataset:
    json_file, colon, image_root = rest.partition(":")
    if not (json_file and colon and image_root):
        raise NormdetError(f"dataset 'coco:{rest}' should read coco:ANNOTATIONS.json:IMAGE_DIR")
    return load_coco(root / json_file, root / image_root, **asdict(reading))


def _voc(rest: str, root: Path, reading: Reading) -> Dataset:
    if not rest:
        raise NormdetError("dataset 'voc:' should read voc:IMAGESET")
    listing = root / rest
    return load_voc(listing.parent, listing.name, **asdict(reading))


def _quickstart(rest: str, root: Path, reading: Reading) -> Dataset:
    if rest not in ("train", "test"):
        raise NormdetError(f"dataset 'quickstart:{rest}' should read quickstart:train or :test")
    folder = quickstart.prepare()
    return load_coco(folder / f"{rest}.json", folder / "images")


def _split(rest: str, root: Path, reading: Reading) -> Dataset:
    part, _, rest = rest.partition(":")
    share, _, text = rest.partition(":")
    if text.partition(":")[0] not in _READERS:
        raise NormdetError(
            f"dataset 'split:{part}:{share}:{text}' should read split:train:SHARE:DATASET or "
            f"split:val:SHARE:DATASET, where DATASET is one of {FORMS}"
        )
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    return split(_read(text, root, reading), part, number)


_READERS = {"coco": _coco, "voc": _voc, "quickstart": _quickstart, "split": _split}


def _read(text: str, root: Path, reading: Reading | None = None) -> Dataset:
    scheme, _, rest = text.partition(":")
    return _READERS[scheme](rest, root, reading or Reading())


def _check(cfg: CfgNode, where: str, dataset: Dataset, train: bool) -> None:
    part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet") else "ROI_HEADS"
    classes = cfg.MODEL[part].NUM_CLASSES
    if classes != len(dataset.classes):
        names = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
        raise NormdetError(
            f"MODEL.{part}.NUM_CLASSES is {classes}, but {where} has "
            f"{len(dataset.classes)} classes: {names}"
        )
    # Crowds are not trained on. They are RLE even in files whose objects are polygons.
    objects = [
        obj
        for record in dataset.records
        for obj in record["annotations"]
        if not obj.get("iscrowd", 0)
    ]
    if train and cfg.MODEL.WEIGHTS and not cfg.DATASETS.PIXEL_STD and _deep(dataset):
        raise NormdetError(
            f"{where} has images of more than 8 bits, and nothing tells at which scale "
            "MODEL.WEIGHTS would see them: set DATASETS.PIXEL_STD to the std of their values, as "
            "`normdet prepare` does"
        )
    if train and not objects:
        raise NormdetError(f"{where} holds no box to train on")
    if train and cfg.MODEL.MASK_ON and not all("segmentation" in obj for obj in objects):
        raise NormdetError(f"MODEL.MASK_ON is True, but {where} has boxes without a mask")
    if train and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        if any(isinstance(obj["segmentation"], dict) for obj in objects):
            raise NormdetError(f"{where} has RLE masks: set INPUT.MASK_FORMAT to 'bitmask'")


def _deep(dataset: Dataset) -> bool:
    return bool(dataset.records) and is_deep(dataset.records[0]["file_name"])


def _register(text: str, dataset: Dataset) -> None:
    # The same text may mean another folder now (DATASETS.ROOT), so the newest reading counts.
    if text in DatasetCatalog.list():
        DatasetCatalog.remove(text)
    if text in MetadataCatalog.list():
        MetadataCatalog.remove(text)
    DatasetCatalog.register(text, lambda: dataset.records)
    metadata = MetadataCatalog.get(text)
    metadata.set(
        thing_classes=dataset.classes,
        thing_dataset_id_to_contiguous_id={key: i for i, key in enumerate(dataset.category_ids)},
        image_root=str(dataset.image_root),
        evaluator_type="coco",
    )


def _check_files(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "image_root"):
        path = metadata.get(key)
        if path and "://" not in path and not os.path.exists(path):
            raise NormdetError(
                f"dataset {name!r} needs {path}, which does not exist: set the environment "
                "variable DETECTRON2_DATASETS to the folder that holds it"
            )
