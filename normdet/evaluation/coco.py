"""COCO AP through pycocotools, also for datasets that are no COCO file."""

import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from normdet.errors import NormdetError

# How many detections count in an image that is evaluated in tiles.
MOST_IN_TILES = 100_000


class TilesEvaluator(COCOEvaluator):
    """detectron2's, which also takes the detections of a :class:`TiledModel` in their RLE."""

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

    def _derive_coco_results(
        self,
        coco_eval: COCOeval | None,
        iou_type: str,
        class_names: Sequence[str] | None = None,
    ) -> dict:
        """AP by name. A model that finds nothing has 0 where there is something to find.

        detectron2 passes `None` for it and would call all its metrics not a number.
        """
        if coco_eval is None:
            coco_eval = self._nothing_found(iou_type)
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _nothing_found(self, iou_type: str) -> COCOeval:
        found = COCO()  # `loadRes` takes no empty list
        found.dataset = {**self._coco_api.dataset, "annotations": []}
        found.createIndex()
        measured = COCOeval(self._coco_api, found, iou_type)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
        return measured


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> COCOEvaluator:
    """detectron2's COCOEvaluator of boxes, and of masks and keypoints where the model has them.

    The tasks are named from `cfg`: left to the predictions, a model that finds nothing would have
    no mask AP at all in place of none found. A dataset without a COCO file gets one, written anew
    each time: detectron2 would take an old one for current.

    Args:
        cfg: says what the model predicts.
        dataset_name: a registered dataset.
        output_dir: where predictions and the COCO file go; `OUTPUT_DIR/inference` by default.

    Raises:
        NormdetError: for a dataset that is not evaluated with COCO AP.
    """
    output_dir = Path(cfg.OUTPUT_DIR, "inference") if output_dir is None else Path(output_dir)
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", "coco")
    if kind not in ("coco", "coco_panoptic_seg"):
        raise NormdetError(
            f"dataset {dataset_name!r} is evaluated as {kind!r}; normdet measures COCO AP only"
        )
    written = metadata.get("written_json_file")
    if written or not metadata.get("json_file"):
        path = output_dir / f"{re.sub(r'[^A-Za-z0-9]+', '_', dataset_name)}_coco_format.json"
        convert_to_coco_json(dataset_name, str(path), allow_cached=False)
        if written:
            del metadata.json_file, metadata.written_json_file
        metadata.json_file = metadata.written_json_file = str(path)
    tasks = ["bbox"]
    tasks += ["segm"] if cfg.MODEL.MASK_ON else []
    tasks += ["keypoints"] if cfg.MODEL.KEYPOINT_ON else []
    # COCO counts 100 detections an image; where a model is asked for more, all of them count.
    most = max(100, cfg.TEST.DETECTIONS_PER_IMAGE)
    return TilesEvaluator(
        dataset_name,
        tasks=tuple(tasks),
        output_dir=str(output_dir),
        # The model's number is one tile's: a large image has any number of them.
        max_dets_per_image=MOST_IN_TILES if cfg.INPUT.TILE else most,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )
