"""Names of written images."""

import numpy as np

from normdet.medical.prepare.write import file_name_of


def test_a_name_that_is_too_long_keeps_its_end():
    pixels = np.zeros((2, 2), np.uint8)
    long = ["ä" * 150 + f"{number}_0001" for number in range(2)]
    names = [file_name_of(name, pixels) for name in long]
    assert len({*names}) == 2 and max(len(name.encode()) for name in names) < 255
    assert all(name.endswith(f"ä{number}_0001.png") for number, name in enumerate(names))
    assert file_name_of("a", pixels.astype(np.float32)) == "a.tif"
