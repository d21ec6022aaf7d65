"""Names of earlier versions still work."""

import importlib

import pytest


@pytest.mark.parametrize(
    "old, new",
    [
        ("normdet.predict", "normdet.medical.predict"),
        ("normdet.predict.overlay", "normdet.medical.predict.overlay"),
        ("normdet.data.readers", "normdet.medical.readers"),
        ("normdet.data.readers.dicom", "normdet.medical.readers.dicom"),
        ("normdet.eval_norm", "normdet.convert.blend"),
        ("normdet.inference.tiled_model", "normdet.evaluation.tiled_model"),
        ("normdet.compare", "normdet.lab.compare"),
    ],
)
def test_a_moved_module_is_found_by_its_old_name(old, new):
    assert importlib.import_module(old) is importlib.import_module(new)


def test_what_was_in_config_is_still_there():
    import normdet.config
    import normdet.keys

    assert normdet.config.norm_option is normdet.keys.norm_option
    assert normdet.config.PARTS is normdet.keys.PARTS
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = normdet.config.nothing
