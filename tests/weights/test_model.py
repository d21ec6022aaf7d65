"""A detector with its weights, from a config."""

import pytest
import torch
from detectron2.modeling import build_model

from normdet.config import load_config
from normdet.errors import NormdetError
from normdet.weights import load_model, save_file


@pytest.mark.slow
def test_a_config_and_its_weights_become_a_detector_in_test_mode(tmp_path):
    path = str(tmp_path / "model.pth")
    cfg = load_config("quickstart/gn.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", path])
    with pytest.raises(NormdetError, match="model.pth does not exist"):
        load_model(cfg)
    trained = build_model(cfg).state_dict()
    save_file({"model": trained}, path)
    model, report = load_model(cfg)
    assert not model.training and set(report.matched) == set(trained)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())
    _, report = load_model(cfg, "")
    assert not report.matched and not report.source
