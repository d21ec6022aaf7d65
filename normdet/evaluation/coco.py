"""COCO AP through pycocotools for any dataset. The truth is its records, not its file.

Semantic and panoptic datasets are measured by detectron2's evaluators.
"""

import contextlib
import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from normdet.errors import NormdetError
from normdet.evaluation.measure import measured
from normdet.evaluation.truth import truth_of
from normdet.files.anonymous import is_hiding

logger = logging.getLogger(__name__)

# The most detections that count in an image that is evaluated in tiles.
MOST_IN_TILES = 100_000
# A detection with more than this share in ignored pixels is neither right nor wrong.
IGNORED_SHARE = 0.5


class Evaluator(COCOEvaluator):
    """detectron2's evaluator, on records that we number. It also takes a :class:`TiledModel`'s RLE.

    Written files have the user's ids. Detections that lie mostly in the ignored pixels of an image
    (`record["ignore"]`) do not count.

    Args:
        records: of the dataset, in detectron2's format.
        classes: names in the order of the contiguous category.
        category_ids: the user's, in the same order.
        tasks: `"bbox"`, `"segm"`, `"keypoints"`.
        output_dir: where predictions are written.
        max_dets_per_image: how many detections of an image count.
        kpt_oks_sigmas: see detectron2; () for COCO's.
        measure: whether there is a truth; if not, only predictions are written.
    """

    def __init__(
        self,
        records: Sequence[dict],
        classes: Sequence[str],
        category_ids: Sequence[int | str],
        *,
        tasks: Sequence[str],
        output_dir: str,
        max_dets_per_image: int = 100,
        kpt_oks_sigmas: Sequence[float] = (),
        measure: bool = True,
    ):
        # detectron2's constructor would make pycocotools read the user's file. We give it no ids
        # to map categories to, because the truth has contiguous ones.
        self._logger = logging.getLogger(__name__)
        self._distributed, self._output_dir = True, output_dir
        self._use_fast_impl, self._cpu_device = False, torch.device("cpu")
        self._max_dets_per_image = [1, 10, max_dets_per_image]
        self._tasks, self._kpt_oks_sigmas = tuple(tasks), kpt_oks_sigmas
        self._metadata = Metadata(name="numbered", thing_classes=list(classes))
        self._coco_api, self._do_evaluation = truth_of(records, classes), measure
        self._numbers = {record["image_id"]: n for n, record in enumerate(records, start=1)}
        self._category_ids = list(category_ids)
        self._ignored = {
            record["image_id"]: record["ignore"] for record in records if "ignore" in record
        }

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in what a model found in some images."""
        for example, output in zip(inputs, outputs, strict=True):
            if "detections" not in output:
                super().process([example], [output])
                continue
            key, size = example["image_id"], (example["height"], example["width"])
            results = [
                {"image_id": key, "category_id": one.category, **one.as_coco(*size)}
                for one in output["detections"]
            ]
            self._predictions.append({"image_id": key, "instances": results})

    def _eval_predictions(self, predictions: list[dict], img_ids: list | None = None) -> None:
        """Write predictions with the user's ids, and measure them with ours."""
        if self._output_dir:
            self._write(result for one in predictions for result in one["instances"])
        if not self._do_evaluation:
            self._logger.info("the dataset has no annotations: predictions are written alone")
            return
        numbered = [
            {**result, "image_id": self._numbers[one["image_id"]]}
            for one in predictions
            for result in self._counted(one)
        ]
        for task in sorted(self._tasks):
            # A model that finds nothing gets an AP of 0 if there are objects; detectron2 would
            # report "not a number".
            found = measured(
                self._coco_api,
                numbered,
                task,
                max_dets=self._max_dets_per_image,
                sigmas=self._kpt_oks_sigmas,
            )
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(found, task, class_names=names)

    def _eval_box_proposals(self, predictions: list[dict]) -> None:
        numbered = [{**one, "image_id": self._numbers[one["image_id"]]} for one in predictions]
        with self._nothing_written():
            super()._eval_box_proposals(numbered)

    @contextlib.contextmanager
    def _nothing_written(self):
        folder, self._output_dir = self._output_dir, None
        try:
            yield
        finally:
            self._output_dir = folder

    def _write(self, results: Iterable[Mapping]) -> None:
        mapped = [
            {
                **result,
                "image_id": self._shown(result["image_id"]),
                "category_id": self._category_ids[result["category_id"]],
            }
            for result in results
        ]
        file = Path(self._output_dir, "coco_instances_results.json")
        file.write_text(json.dumps(mapped))

    def _shown(self, key: int | str) -> int | str:
        """The user's id of an image; where names are hidden, our number for one that is text."""
        return self._numbers[key] if is_hiding() and isinstance(key, str) else key

    def _counted(self, prediction: dict) -> list[dict]:
        """The detections of an image that do not lie mostly in ignored pixels."""
        ignored = self._ignored.get(prediction["image_id"])
        results = prediction["instances"]
        if ignored is None or not results:
            return results
        masks = [
            result.get("segmentation")
            or mask_util.frPyObjects(np.array([result["bbox"]], float), *ignored["size"])[0]
            for result in results
        ]
        # The share of each in the ignored pixels, as COCO counts it for crowds.
        shares = mask_util.iou(masks, [ignored], [1])[:, 0]
        return [r for r, share in zip(results, shares, strict=True) if share <= IGNORED_SHARE]


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> DatasetEvaluator:
    """The evaluator of a dataset: COCO AP; IoU for semantic ones; both and PQ for panoptic ones.

    AP is of boxes, and of masks and keypoints where the model has them. These tasks are taken from
    `cfg`. detectron2 would take them from the predictions, and a model that finds nothing would
    then have no mask AP instead of 0. PQ needs the package panopticapi; without it the rest is
    measured.

    Args:
        cfg: says what the model predicts.
        dataset_name: a registered dataset.
        output_dir: where predictions go; `OUTPUT_DIR/inference` by default.

    Raises:
        NormdetError: for a dataset that is measured in another way.
    """
    output_dir = Path(cfg.OUTPUT_DIR, "inference") if output_dir is None else Path(output_dir)
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", "coco")
    if kind not in ("coco", "sem_seg", "coco_panoptic_seg"):
        raise NormdetError(
            f"dataset {dataset_name!r} is evaluated as {kind!r}; normdet measures AP, IoU and PQ, "
            "of kinds 'coco', 'sem_seg' and 'coco_panoptic_seg'"
        )
    parts: list[DatasetEvaluator] = []
    if kind != "coco":
        semantic = SemSegEvaluator(dataset_name, output_dir=str(output_dir))
        semantic.sem_seg_loading_fn = _labels
        parts.append(semantic)
    if kind != "sem_seg":
        parts.append(_of_instances(cfg, dataset_name, output_dir))
    if kind == "coco_panoptic_seg":
        if importlib.util.find_spec("panopticapi"):
            parts.append(COCOPanopticEvaluator(dataset_name, str(output_dir)))
        else:
            logger.warning(
                "PQ is not measured: the package panopticapi is not installed; PyPI has it as "
                "panopticapi-lite (pip install --no-deps panopticapi-lite)"
            )
    return parts[0] if len(parts) == 1 else DatasetEvaluators(parts)


def _labels(path: str, dtype: type = int) -> np.ndarray:
    """A semantic truth; detectron2's own reader asks NumPy 2 for what it refuses."""
    with PathManager.open(path, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)


def _of_instances(cfg: CfgNode, dataset_name: str, output_dir: Path) -> "Evaluator":
    metadata = MetadataCatalog.get(dataset_name)
    records = _records(dataset_name)
    classes = metadata.get("thing_classes", [])
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or range(len(classes))
    tasks = ["bbox"]
    tasks += ["segm"] if cfg.MODEL.MASK_ON else []
    tasks += ["keypoints"] if cfg.MODEL.KEYPOINT_ON else []
    # COCO counts 100 detections per image. If the config asks for more, all of them count.
    most = max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
    return Evaluator(
        records,
        classes,
        sorted(ids, key=ids.get) if isinstance(ids, Mapping) else list(ids),
        tasks=tasks,
        output_dir=str(output_dir),
        # The config's number is for one tile; a large image has many.
        max_dets_per_image=MOST_IN_TILES if cfg.INPUT.TILE else most,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        # Test sets of challenges come without a truth.
        measure=not metadata.get("json_file") or any(one["annotations"] for one in records),
    )


def _records(dataset_name: str) -> list[dict]:
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("json_file"):
        return DatasetCatalog.get(dataset_name)
    # Registered by detectron2 or its user: the same records, and the areas from the file.
    return load_coco_json(
        metadata.json_file,
        metadata.get("image_root", ""),
        dataset_name,
        extra_annotation_keys=["area"],
    )
