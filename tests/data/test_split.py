"""Parts held out by image: disjoint, whole, and the same everywhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from normdet import NormdetError
from normdet.config import load_config
from normdet.data import register_datasets
from normdet.data.records import Dataset
from normdet.data.split import split


def dataset(count, root="data/images"):
    records = [{"file_name": f"{root}/{i}.png", "annotations": []} for i in range(count)]
    return Dataset(records, ["a"], [1], Path(root))


@pytest.mark.parametrize(
    "count, share, held", [(10, 0.2, 2), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)]
)
def test_the_parts_are_disjoint_and_whole(count, share, held):
    whole = dataset(count)
    train, val = (split(whole, part, share) for part in ("train", "val"))
    assert len(val.records) == held and len(whole.records) == count
    names = [r["file_name"] for r in train.records + val.records]
    assert sorted(names) == sorted(r["file_name"] for r in whole.records)


def test_a_part_does_not_depend_on_order_or_place():
    names = {Path(r["file_name"]).name for r in split(dataset(50), "val", 0.3).records}
    elsewhere = dataset(50, "/another/place")
    turned = replace(elsewhere, records=elsewhere.records[::-1])
    assert {Path(r["file_name"]).name for r in split(turned, "val", 0.3).records} == names


def test_more_images_held_out_hold_the_earlier_ones():
    few, many = ({r["file_name"] for r in split(dataset(50), "val", s).records} for s in (0.1, 0.3))
    assert few < many


@pytest.mark.parametrize("part, share", [("test", 0.2), ("val", 0.0), ("val", 1.0), ("val", -1.0)])
def test_a_bad_share_or_part_is_refused(part, share):
    with pytest.raises(NormdetError, match="split:val:SHARE:DATASET"):
        split(dataset(9), part, share)
    with pytest.raises(NormdetError, match="two are the least"):
        split(dataset(1), "val", 0.5)


@pytest.mark.parametrize(
    "text", ["split:val", "split:val:x:quickstart:train", "split:val:0.2:coco_2017"]
)
def test_a_text_that_does_not_read_as_a_split(text):
    cfg = load_config("quickstart/base.yaml", ["DATASETS.TRAIN", str((text,))])
    with pytest.raises(NormdetError, match="split:val:SHARE:DATASET"):
        register_datasets(cfg)


def test_it_is_registered_under_its_text(quickstart_data):
    from detectron2.data import DatasetCatalog

    texts = [f"split:{part}:0.25:quickstart:train" for part in ("train", "val")]
    cfg = load_config("quickstart/base.yaml", ["DATASETS.TRAIN", str(tuple(texts))])
    register_datasets(cfg)
    train, val = (DatasetCatalog.get(text) for text in texts)
    assert len(train) == 3 * len(val) and len(val) == 7
