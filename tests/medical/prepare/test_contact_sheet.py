"""The contact sheet of a prepared data set."""

import numpy as np
import pytest
from PIL import Image

from normdet.medical.prepare.contact_sheet import picture_of


@pytest.mark.slow
def test_the_sheet_brightens_a_part_of_a_large_image(tmp_path):
    Image.fromarray(np.zeros((1500, 9000), np.uint16)).save(tmp_path / "a.png")
    assert picture_of(tmp_path / "a.png").size == (9000, 1500)
    Image.fromarray(np.zeros((3000, 9000), np.uint16)).save(tmp_path / "a.png")
    assert picture_of(tmp_path / "a.png").size == (4500, 1500)
