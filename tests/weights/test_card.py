"""The model card describes its file, and reports only what was measured."""

import hashlib

import pytest

from normdet.config import load_config
from normdet.weights.card import Card, Measurement, write_card


@pytest.fixture
def cfg():
    return load_config("coco/mask_rcnn_R_50_FPN_1x.yaml", norm="GN")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "Jane Doe" / "gn.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


def test_what_where_from_and_how_measured(cfg, file):
    source = file.with_name("R-50.pth")
    source.write_bytes(b"source")
    card = Card(
        "Weights under GN.", source, "normdet convert R-50.pth --to GN", {"rung": "closed"},
        [Measurement("Distance", [{"stage": "res5", "error": 0.12345}, {"stage": "a|b"}])],
        ["Trained on photographs."], ["normdet train"],
    )  # fmt: skip
    path = write_card(file, cfg, card)
    assert path == file.with_name("gn.pth.md")
    text = path.read_text()
    for content in (b"weights", b"source"):
        assert hashlib.sha256(content).hexdigest() in text
    for said in ("GN: `MODEL.RESNETS.NORM`", "| res5", "0.123", "a\\|b", "- Trained", "```bash"):
        assert said in text
    assert "Jane" not in text and "Nothing was measured" not in text
    assert len(list(file.parent.iterdir())) == 3


def test_without_a_measurement_it_says_so(cfg, file):
    text = write_card(file, cfg, Card("A model.", "detectron2://R-50.pkl")).read_text()
    assert "Nothing was measured." in text and "its SHA-256" not in text
    assert "R-50.pkl" in text and "## Limits" not in text and "## Use" not in text


def test_retinanet_names_its_own_classes(file):
    cfg = load_config("coco/retinanet_R_50_FPN_1x.yaml", ["MODEL.RETINANET.NUM_CLASSES", "7"])
    text = write_card(file, cfg, Card("A model.", file)).read_text()
    assert any("classes" in line and " 7 " in line for line in text.splitlines())
