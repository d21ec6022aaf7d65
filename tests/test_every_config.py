"""Every YAML of the repo loads, builds, and trains one step on two images."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Keypoints
from detectron2.utils.events import EventStorage

from docs.tables.from_code import PUBLISHED
from normdet.config import config_folder, config_names, load_config
from normdet.keys import norm_option
from normdet.layers import NormLayer
from normdet.parts import owner
from normdet.solver import build_optimizer

# Files that only other files name as a base: each is tried on top of the model it belongs to.
FRAGMENTS = {"norms": "coco/Base-MaskRCNN-FPN.yaml", "coco/heads": "coco/Base-MaskRCNN-FPN.yaml",
             "coco/weights": "coco/Base-MaskRCNN-FPN.yaml",
             "coco/schedules": "coco/Base-MaskRCNN-FPN.yaml"}  # fmt: skip

# The stock structure at a small resolution with few regions; the C++ work is the same.
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "SOLVER.IMS_PER_BATCH", 2,
]  # fmt: skip


def load(name: str, tmp_path: Path) -> CfgNode:
    base = FRAGMENTS.get(str(Path(name).parent))
    if base is None:
        return load_config(name, SMALL)
    folder = config_folder()
    path = tmp_path / "whole.yaml"
    path.write_text(f'_BASE_: ["{folder / base}", "{folder / name}"]\n')
    return load_config(path, SMALL)


@pytest.fixture(scope="module")
def two_images(request) -> list[dict]:
    """Two images that any detector can train on: with masks, keypoints and a class each pixel."""
    examples = _with_masks(request)
    generator = torch.Generator().manual_seed(0)
    for example in examples:
        boxes = example["instances"].gt_boxes.tensor
        places = torch.rand(len(boxes), 17, 2, generator=generator)
        points = boxes[:, None, :2] + places * (boxes[:, None, 2:] - boxes[:, None, :2])
        seen = torch.full((len(boxes), 17, 1), 2.0)
        example["instances"].gt_keypoints = Keypoints(torch.cat([points, seen], 2))
        size = example["image"].shape[1:]
        example["sem_seg"] = torch.randint(0, 54, size, generator=generator)
    return examples


def _with_masks(request) -> list[dict]:
    """Two real images where there are some, drawn ones elsewhere."""
    try:
        folder = request.getfixturevalue("real_data")
    except pytest.skip.Exception:
        from tests.modeling.test_same_as_stock import images

        return images("mask_rcnn")
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    from normdet.data.coco import load_coco

    dataset = load_coco(folder / "nuclei" / "train.json", folder / "nuclei" / "images")
    mapper = DatasetMapper(
        is_train=True, augmentations=[T.Resize((128, 128))], image_format="BGR",
        use_instance_mask=True, instance_mask_format="bitmask",
    )  # fmt: skip
    return [mapper(record) for record in dataset.records[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("name", config_names())
def test_loads_builds_and_trains_a_step(name, two_images, tmp_path):
    cfg = load(name, tmp_path)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    norms = [name for name, module in model.named_modules() if isinstance(module, NormLayer)]
    assert not [name for name in norms if not owner(name).key], "norms of parts that no key sets"
    optimizer = build_optimizer(cfg, model)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    examples = [{**example, "image": example["image"][:channels]} for example in two_images]
    if cfg.MODEL.META_ARCHITECTURE == "NormdetClassifier":  # takes images of one size
        examples = [{"image": e["image"][:, :64, :64], "label": 1} for e in examples]
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with EventStorage():
        losses = model(examples)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    optimizer.step()
    after = dict(model.named_parameters())
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(moved) > len(before) / 2
    assert all(torch.isfinite(after[name]).all() for name in moved)


def test_a_contrast_changes_only_what_it_contrasts():
    """Head, schedule and data of a learnable norm are those of its control."""
    control = load_config("coco/mask_rcnn_R_50_FPN_3x_4conv1fc.yaml")
    for name in ("syncbn", "gn", "gn_ws", "frn_tlu"):
        cfg = load_config(f"coco/mask_rcnn_R_50_FPN_3x_{name}.yaml")
        assert cfg.SOLVER.MAX_ITER == control.SOLVER.MAX_ITER
        assert cfg.SOLVER.BASE_LR == control.SOLVER.BASE_LR
        assert cfg.DATASETS == control.DATASETS and cfg.MODEL.ROI_HEADS == control.MODEL.ROI_HEADS
        assert cfg.MODEL.ROI_BOX_HEAD.NUM_CONV == control.MODEL.ROI_BOX_HEAD.NUM_CONV == 4
        assert str(norm_option(cfg, "box_head")).lower().replace("+", "_") == name


def test_the_anchors_of_retinanet_are_detectron2s():
    cfg = load_config("coco/retinanet_R_50_FPN_1x.yaml")
    wanted = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
    for row, want in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, wanted, strict=True):
        assert row == pytest.approx(want, rel=1e-8)


# Who published a row that a config repeats, and the schedule that the row is at.
SOURCES = (
    "detectron2 model zoo",
    "Detectron's GN README",
    "GN paper",
    "mmdetection",
    "PaddleDetection",
)
CONTRASTS = [
    name for name in config_names()
    if re.match(r"(coco|Misc|COCO-\w+)/[^/]+$", name) and "Base" not in name
]  # fmt: skip


@pytest.mark.parametrize("name", CONTRASTS)
def test_the_first_line_has_the_published_row_or_the_question(name):
    """Norm, numbers and schedule of the line are the config's own."""
    first = (config_folder() / name).read_text().splitlines()[0]
    cfg = load_config(name)
    if row := PUBLISHED.match(first):
        assert 30 < float(row["box"]) < 60 and row["source"].startswith(SOURCES)
        assert (row["mask"] is not None) == cfg.MODEL.MASK_ON
        assert row["mask"] is None or 30 < float(row["mask"]) < float(row["box"])
        schedules = re.findall(r", (\dx)", row["source"])
        assert not schedules or f"_{schedules[0]}" in name
        what = row["what"]
    else:
        asked = re.fullmatch(r"# ([^:]+): .{10,}\? No published number\.", first)
        assert asked, first
        what = asked[1]
    assert "2fc" not in what or cfg.MODEL.ROI_BOX_HEAD.NUM_FC == 2
    part = "fpn" if "over a frozen backbone" in what else "backbone"
    assert str(norm_option(cfg, part)) == re.split(r"[ ,]", what)[0]


def test_a_schedule_is_the_one_of_the_name():
    for name in CONTRASTS:
        times = int(re.search(r"_(\d)x", name)[1])
        assert load_config(name).SOLVER.MAX_ITER == times * 90_000, name
