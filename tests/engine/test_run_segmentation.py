"""Panoptic and semantic FPN by the command line: one step of training, and its evaluation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import COCOPanopticEvaluator
from PIL import Image

from normdet.config import load_config
from normdet.evaluation import build_evaluator

SIDE, COUNT = 64, 4
PERSON, SKY = 1, 187  # of COCO's categories
# How detectron2 numbers them in its semantic truth: 0 for all things, then the stuff by number.
THING, SKY_PIXEL, IGNORED = 0, 40, 255
NAME = "coco_2017_val_100_panoptic"
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18",
         "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "INPUT.MIN_SIZE_TRAIN", "(64,)",
         "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.REFERENCE_WORLD_SIZE",
         "0", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATALOADER.NUM_WORKERS", "0",
         "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """A folder laid out as detectron2's `DETECTRON2_DATASETS`: a square person under the sky."""
    root = tmp_path_factory.mktemp("datasets")
    folder = root / "coco"
    for name in ("val2017", "panoptic_val2017_100", "panoptic_stuff_val2017_100", "annotations"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, things, segments = [], [], []
    for number in range(1, COUNT + 1):
        x = 4 * number
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[: SIDE // 2] += 150
        stuff = np.full((SIDE, SIDE), IGNORED, np.uint8)
        stuff[: SIDE // 2] = SKY_PIXEL
        panoptic = np.zeros((SIDE, SIDE, 3), np.uint8)
        panoptic[: SIDE // 2, :, 0] = 1
        inside = slice(30, 60), slice(x, x + 30)
        pixels[inside], stuff[inside], panoptic[inside] = 220, THING, (2, 0, 0)
        Image.fromarray(pixels).save(folder / "val2017" / f"{number}.jpg")
        Image.fromarray(stuff).save(folder / "panoptic_stuff_val2017_100" / f"{number}.png")
        Image.fromarray(panoptic).save(folder / "panoptic_val2017_100" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": SIDE, "width": SIDE})
        outline = [x, 30, x + 30, 30, x + 30, 60, x, 60]
        things.append({
            "id": number, "image_id": number, "category_id": PERSON, "iscrowd": 0, "area": 900,
            "bbox": [x, 30, 30, 30], "segmentation": [outline],
        })  # fmt: skip
        segments.append({"image_id": number, "file_name": f"{number}.png", "segments_info": [
            {"id": 1, "category_id": SKY, "iscrowd": 0, "area": 1988, "bbox": [0, 0, 64, 32]},
            {"id": 2, "category_id": PERSON, "iscrowd": 0, "area": 900, "bbox": [x, 30, 30, 30]},
        ]})  # fmt: skip
    write_coco(folder / "annotations", images, things, segments)
    return root


def write_coco(folder: Path, images: list, things: list, segments: list) -> None:
    kinds = [{"id": c["id"], "name": c["name"], "isthing": c["isthing"]} for c in COCO_CATEGORIES]
    truths = {
        "instances_val2017_100": ([kind for kind in kinds if kind["isthing"]], things),
        "panoptic_val2017_100": (kinds, segments),
    }
    for name, (categories, annotations) in truths.items():
        record = {"images": images, "categories": categories, "annotations": annotations}
        (folder / f"{name}.json").write_text(json.dumps(record))


def run(coco: Path, command: str, config: str, out: Path, *opts: str) -> tuple[dict, str]:
    """The results of the command in a process of its own, and all that it said."""
    names = ["DATASETS.TRAIN", f"('{NAME}_separated',)", "DATASETS.TEST", f"('{NAME}_separated',)"]
    words = [sys.executable, "-m", "normdet", command, "--config-file", config, *SMALL, *names]
    done = subprocess.run(
        [*words, "OUTPUT_DIR", str(out), *opts], capture_output=True, text=True,
        env=os.environ | {"DETECTRON2_DATASETS": str(coco)},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return json.loads((out / "results.json").read_text()), said


PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
SEMANTIC = "Misc/semantic_R_50_FPN_1x.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "norm", "tasks"),
    [(PANOPTIC, "GN", {"bbox", "segm", "sem_seg"}),
     (PANOPTIC, "FRN+TLU", {"bbox", "segm", "sem_seg"}), (SEMANTIC, "FRN+TLU", {"sem_seg"})],
)  # fmt: skip
def test_a_step_and_its_evaluation(coco, tmp_path, config, norm, tasks):
    out, again = tmp_path / "out", tmp_path / "again"
    results, said = run(coco, "train", config, out, "--norm", norm)
    assert f"semantic head  {norm}" in said
    if importlib.util.find_spec("panopticapi"):
        tasks = tasks | ({"panoptic_seg"} if config == PANOPTIC else set())
    elif config == PANOPTIC:
        assert "PQ is not measured: the package panopticapi is not installed" in said
    assert set(results) == tasks
    iou = results["sem_seg"]["mIoU"]
    assert 0 <= iou <= 100
    weights = str(out / "model_final.pth")
    evaluated, _ = run(coco, "eval", config, again, "--norm", norm, "MODEL.WEIGHTS", weights)
    assert evaluated == results


def test_a_model_that_says_the_truth_has_an_iou_of_100(coco, tmp_path):
    cfg = load_config(SEMANTIC)
    folder, name = coco / "coco", "a square person under the sky"
    records = [
        {"file_name": str(image), "sem_seg_file_name": str(truth), "height": SIDE, "width": SIDE}
        for image, truth in zip(
            sorted((folder / "val2017").iterdir()),
            sorted((folder / "panoptic_stuff_val2017_100").iterdir()),
            strict=True,
        )
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=[str(number) for number in range(54)], ignore_label=IGNORED,
        evaluator_type="sem_seg",
    )  # fmt: skip
    evaluator = build_evaluator(cfg, name, tmp_path)
    evaluator.reset()
    for record in records:
        truth = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]))).long()
        said = torch.nn.functional.one_hot(truth.where(truth != IGNORED, SKY_PIXEL), 54)
        evaluator.process([record], [{"sem_seg": said.permute(2, 0, 1)}])
    found = evaluator.evaluate()["sem_seg"]
    assert found["mIoU"] == found["pACC"] == 100
    DatasetCatalog.remove(name)


def test_a_model_that_says_the_truth_has_a_pq_of_100(coco, tmp_path):
    """And one that calls half the people by another name loses half of what people count."""
    pytest.importorskip("panopticapi")
    folder, name = coco / "coco", "people under the sky"
    truth = json.loads((folder / "annotations" / "panoptic_val2017_100.json").read_text())
    MetadataCatalog.get(name).set(
        panoptic_root=str(folder / "panoptic_val2017_100"),
        panoptic_json=str(folder / "annotations" / "panoptic_val2017_100.json"),
        thing_dataset_id_to_contiguous_id={PERSON: 0, PERSON + 1: 1},
        stuff_dataset_id_to_contiguous_id={SKY: 0},
    )
    evaluator = COCOPanopticEvaluator(name, str(tmp_path))
    for wrong, most in ((0, 100), (COUNT // 2, 200 / 3 / 2)):
        evaluator.reset()
        for number, record in enumerate(truth["annotations"]):
            pixels = np.array(Image.open(folder / "panoptic_val2017_100" / record["file_name"]))
            said = {"id": 1, "category_id": 0, "isthing": False}, {
                "id": 2, "category_id": int(number < wrong), "isthing": True,
            }  # fmt: skip
            found = torch.from_numpy(pixels[..., 0].astype(np.int32)), list(said)
            inputs = {"file_name": record["file_name"], "image_id": record["image_id"]}
            evaluator.process([inputs], [{"panoptic_seg": found}])
        measured = evaluator.evaluate()["panoptic_seg"]
        assert measured["PQ_st"] == 100
        assert measured["PQ_th"] == pytest.approx(most)
    MetadataCatalog.remove(name)
