"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (nuclei, blood cells, COCO); skips where there is none."""
    folder = Path(os.environ.get("NORMDET_TEST_DATA", REPO.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set NORMDET_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def quickstart_data() -> Path:
    """The folder of the embedded nuclei."""
    from normdet.data import quickstart

    return quickstart.prepare()


@pytest.fixture
def config_for_height():
    """Make a config whose mapper leaves RGB images of a height as they are."""
    from detectron2.config import get_cfg

    from normdet import add_normdet_config

    def make(height: int):
        cfg = get_cfg()
        add_normdet_config(cfg)
        cfg.INPUT.FORMAT = "RGB"
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (height,), height
        cfg.INPUT.RANDOM_FLIP = "none"
        return cfg

    return make
