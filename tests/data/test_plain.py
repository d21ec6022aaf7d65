"""Annotations checked in columns give the same as each checked alone."""

import json
import random

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from normdet.data import coco, load_coco
from normdet.data.plain import Columns
from normdet.data.rle import fills, runs
from normdet.errors import NormdetError
from tests.test_fuzz import retyped

SIDE = 24


def _annotation(number: int, draw: random.Random) -> dict:
    x, y = draw.uniform(0, 10), draw.uniform(0, 10)
    w, h = draw.uniform(2, 12), draw.uniform(2, 12)
    outline = [x, y, x + w, y, x + w, y + h, x, y + h]
    filled = np.zeros((SIDE, SIDE), np.uint8, order="F")
    filled[int(y) : int(y + h), int(x) : int(x + w)] = 1
    text = mask_util.encode(filled)
    text["counts"] = text["counts"].decode()
    loose = {"size": [SIDE, SIDE], "counts": [SIDE * SIDE - 5, 5]}
    mask = draw.choice([[outline], [outline], [outline, outline[:6]], text, loose, None, []])
    entry = {
        "id": number, "image_id": draw.choice([1, 2, "1", 2.0, 3]), "category_id": 1,
        "bbox": [x, y, w, h], "iscrowd": draw.choice([0, 0, 0, 1, None, False]), "area": w * h,
        "segmentation": mask, "keypoints": draw.choice([None, [], [x, y, 2], [1, 2, 0] * 2]),
    }  # fmt: skip
    return {key: value for key, value in entry.items() if draw.random() > 0.02}


def _odd(entry: dict, draw: random.Random) -> dict:
    """Sometimes make one thing wrong."""
    if draw.random() < 0.4:
        return entry
    box = entry.get("bbox", [1, 1, 5, 5])
    changes = [
        {"bbox": [box[0], box[1], box[0] + box[2], box[1] + box[3]]},
        {"bbox": [-3.0, *box[1:]]}, {"bbox": [*box[:2], 0, 5]}, {"bbox": [1e308, 1e308, 1e308, 1]},
        {"bbox": [True, 1, 5, 5]}, {"bbox": [10**400, 1, 5, 5]}, {"bbox": [90, 90, 5, 5]},
        {"segmentation": [1, 2, 8, 2, 8, 9]}, {"segmentation": [[1, 2, 8, 2, 8, float("nan")]]},
        {"segmentation": [[1, 2, 8, 2, 8, 200]]}, {"segmentation": [[1, 2], [1, 2, 8, 2, 8, 9]]},
        {"segmentation": {"size": [SIDE, SIDE], "counts": "b15d0O1OO1O1"}},
        {"segmentation": {"size": [SIDE, SIDE], "counts": ""}}, {"iscrowd": "0"}, {"ignore": 1},
        {"category_id": True}, {"image_id": True}, {"keypoints": [1, 2]}, {"area": float("inf")},
    ]  # fmt: skip
    return {**entry, **draw.choice(changes)}


@pytest.mark.parametrize("seed", range(30))
def test_columns_give_what_single_annotations_give(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "images" / name)
    size = {"height": SIDE, "width": SIDE}
    annotations = [_annotation(number, draw) for number in range(40)]
    if seed > 4:
        annotations = [_odd(entry, draw) for entry in annotations]
    if seed > 20:
        annotations = [
            one if isinstance(one := retyped(entry, draw), dict) else {} for entry in annotations
        ]
    content = {
        "images": [{"id": n, "file_name": f"{'ab'[n - 1]}.png", **size} for n in (1, 2)],
        "annotations": annotations, "categories": [{"id": 1, "name": "cell"}],
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(content))
    monkeypatch.setattr(coco, "AT_ONCE", 1 + seed % 9)

    def read():
        told = []
        try:
            found = load_coco(tmp_path / "c.json", tmp_path / "images", told.append)
        except NormdetError as error:
            return told, str(error)
        return told, repr(found)

    together = read()
    look = coco.columns

    def nothing(part, owners, classes) -> Columns:
        found = look(part, owners, classes)
        found.plain[:] = False
        return found

    monkeypatch.setattr(coco, "columns", nothing)
    assert together == read()


def test_most_annotations_are_plain():
    record = {"height": SIDE, "width": SIDE}
    draw = random.Random(0)
    entries = [_annotation(number, draw) for number in range(200)]
    for entry in entries:
        entry.update(image_id=1, category_id=1)
    plain = coco.columns(entries, {1: record}, {1: 0}).plain
    loose = [isinstance((e.get("segmentation") or {"counts": ""}), dict)
             and isinstance((e.get("segmentation") or {"counts": ""})["counts"], list)
             for e in entries]  # fmt: skip
    whole = np.array(["bbox" in entry for entry in entries]) & ~np.array(loose)
    assert (plain == whole).all() and whole.sum() > 100


def test_runs_of_many_masks_at_once():
    draw = random.Random(0)
    texts, pixels = [], []
    for _ in range(400):
        height, width = draw.randrange(1, 40), draw.randrange(1, 40)
        mask = np.asfortranarray(np.random.default_rng(len(texts)).random((height, width)) > 0.6)
        text = bytearray(mask_util.encode(mask.astype(np.uint8))["counts"])
        if draw.random() < 0.5:
            text[draw.randrange(len(text))] = draw.randrange(30, 127)
        texts.append(bytes(text).decode())
        pixels.append(height * width)
    texts += ["", "é1", "o" * 40, "oooooooooooo0", "ooooooooooooo0", "P" * 3, "1o"]
    pixels += [1] * 7
    expected = [
        bool(found := runs(text)) and min(found) >= 0 and sum(found) == count
        for text, count in zip(texts, pixels, strict=True)
    ]
    assert 100 < sum(expected) < 400
    got = [fills([text], np.array([count]))[0] for text, count in zip(texts, pixels, strict=True)]
    assert got == expected
    ascii_ones = [place for place, text in enumerate(texts) if text.isascii() and text]
    together = fills([texts[i] for i in ascii_ones], np.array(pixels)[ascii_ones])
    assert together.tolist() == [expected[i] for i in ascii_ones]


def test_an_unfinished_run_is_none():
    # pycocotools reads beyond the text.
    assert runs("1") == [1] and runs("1o") is None
