"""Masks whose values a table names."""

import json

import numpy as np
import pytest
from PIL import Image

from normdet.cli import main
from normdet.errors import NormdetError
from normdet.medical.prepare.class_table import with_names
from normdet.medical.prepare.masks import Labels
from tests.medical.prepare.drawn import HEIGHT, WIDTH, image, write


def test_the_values_of_roboflow_s_masks_are_classes(tmp_path, capsys):
    out = tmp_path / "out"
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:15, 5:15], labels[5:15, 30:40], labels[30:50, 30:60] = 1, 1, 2
    for part, names in (("train", "ab"), ("valid", "c")):
        folder = tmp_path / "lab" / part
        for name in names:
            image(folder / f"{name}_png.rf.0fe.jpg")
            Image.fromarray(labels).save(folder / f"{name}_png.rf.0fe_mask.png")
        write(folder / "_classes.csv", "Pixel Value, Class\n0, background\n1, cell\n2, dirt\n")
    assert main(["prepare", str(tmp_path / "lab"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "faults   0" in said.out and "classes  cell, dirt" in said.out
    assert "the values of the masks are classes" in " ".join(said.out.split())
    made = json.loads((out / "fingerprint.json").read_text())
    assert made["images"] == {"train": 2, "val": 1}
    texts = [(out / f"{part}.json").read_text() for part in ("train", "val")]
    found = [json.loads(text)["annotations"] for text in texts]
    assert [[one["category_id"] for one in part] for part in found] == [[1, 1, 2] * 2, [1, 1, 2]]


def test_other_tables_and_the_user_s_own_names_go_before(tmp_path):
    table = tmp_path / "train" / "_classes.csv"
    write(table, "Pixel Value, Class\n0, background\n1, cell\n")
    assert with_names(Labels(), tmp_path)[0].classes == ("cell",)
    for rule in (Labels(classes=("dirt",)), Labels(instances="values")):
        assert with_names(rule, tmp_path) == (rule, [])
    write(tmp_path / "valid" / "_classes.csv", "Pixel Value, Class\n1, dirt\n")
    with pytest.raises(NormdetError, match="name other classes"):
        with_names(Labels(), tmp_path)
    (tmp_path / "valid" / "_classes.csv").unlink()
    for text, told in (("0, a\n2, b", "does not name the values 1, 2"), ("x, a", "no value and")):
        write(table, f"Pixel Value, Class\n{text}\n")
        with pytest.raises(NormdetError, match=told):
            with_names(Labels(), tmp_path)
    write(table, "filename, cell\na.png, 1\n")
    assert with_names(Labels(), tmp_path) == (Labels(), [])
