"""The record beside a checkpoint: classes, and the window that prepare applied."""

import json

import pytest
from detectron2.data import MetadataCatalog

from normdet.config import load_config
from normdet.data.input_record import FILE, InputRecord, read_record, write_record
from normdet.errors import NormdetError


@pytest.fixture
def cfg(tmp_path):
    name = f"record-{tmp_path.name}"
    ids = {9: 0, 4: 1}
    MetadataCatalog.get(name).set(
        thing_classes=["Zelle", "ядро"], thing_dataset_id_to_contiguous_id=ids
    )
    opts = ["DATASETS.TRAIN", (name,), "DATASETS.ROOT", str(tmp_path / "data")]
    yield load_config("quickstart/gn.yaml", [*opts, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    MetadataCatalog.remove(name)


def fingerprint(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fingerprint.json").write_text(content)


def test_the_record_that_training_writes_is_read_back(cfg, tmp_path):
    fingerprint(tmp_path, json.dumps({"window": "CT:40,400", "axis": None, "neighbours": 2}))
    write_record(cfg, tmp_path)
    expected = InputRecord(["Zelle", "ядро"], [9, 4], "CT:40,400", "axial", 2)
    assert read_record(cfg, tmp_path) == expected


@pytest.mark.parametrize("content", ["", "[1]", '{"window": 3}'])
def test_a_fingerprint_of_something_else_is_no_window(cfg, tmp_path, content):
    fingerprint(tmp_path, content)
    write_record(cfg, tmp_path)
    assert read_record(cfg, tmp_path).window == "auto"


def test_without_a_record_classes_are_numbered(cfg, tmp_path):
    assert read_record(cfg, tmp_path) == InputRecord(["class 1", "class 2"], [1, 2])


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "cannot be read"),
        ('{"no": 1}', "cannot be read"),
        ('{"classes": ["a"], "category_ids": [1]}', "names 1 classes"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(cfg, tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(NormdetError, match=message):
        read_record(cfg, tmp_path)
