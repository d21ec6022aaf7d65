"""COCO's measures of detections: through faster-coco-eval where it is installed, else pycocotools.

Both give the same numbers (by test, to 12 digits); the compiled one takes a sixth of the time.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from normdet.errors import NormdetError
from normdet.evaluation.truth import indexed

try:  # an extra: pip install normdet[eval]
    from faster_coco_eval.core import COCOeval_faster
except ImportError:
    COCOeval_faster = None


def measured(
    truth: COCO,
    results: Sequence[Mapping],
    task: str,
    *,
    max_dets: Sequence[int] = (1, 10, 100),
    sigmas: Sequence[float] = (),
    fast: bool = True,
) -> COCOeval:
    """Compare detections with a truth; the evaluation returned has `stats` and `eval`.

    Args:
        truth: with an index.
        results: in COCO's form; may be empty.
        task: `"bbox"`, `"segm"` or `"keypoints"`.
        max_dets: three numbers of detections per image that count, rising.
        sigmas: of keypoints; () for COCO's.
        fast: use the compiled evaluator where it is installed.

    Raises:
        NormdetError: keypoints of another number than sigmas.
    """
    if task == "segm":
        # Given a box, COCO would use its area as the mask's.
        results = [{key: one[key] for key in one if key != "bbox"} for one in results]
    found = _loaded(truth, results)
    compiled = fast and COCOeval_faster is not None and task != "keypoints" and len(results)
    # COCOevalMaxDets handles another number of detections than 100.
    usual = max_dets[2] == 100
    kind = COCOeval_faster if compiled and usual else COCOeval if usual else COCOevalMaxDets
    measure = kind(truth, found, task)
    if task == "keypoints":
        _check_keypoints(truth, results, measure, sigmas)
    else:
        measure.params.maxDets = list(max_dets)
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    return measure


def _loaded(truth: COCO, results: Sequence[Mapping]) -> COCO:
    if results:
        return truth.loadRes(list(results))
    # `loadRes` takes no empty list.
    return indexed({**truth.dataset, "annotations": []})


def _check_keypoints(
    truth: COCO, results: Sequence[Mapping], measure: COCOeval, sigmas: Sequence[float]
) -> None:
    if len(sigmas):
        measure.params.kpt_oks_sigmas = np.array(sigmas)
    wanted = len(measure.params.kpt_oks_sigmas)
    first = next(iter(truth.anns.values()), {})
    for entry in (first, *results[:1]):
        count = len(entry.get("keypoints", ())) // 3
        if entry and count != wanted:
            raise NormdetError(
                f"objects have {count} keypoints, and TEST.KEYPOINT_OKS_SIGMAS is for {wanted}"
            )
