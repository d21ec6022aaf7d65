"""Two classes of drawn images."""

import pytest

from .tiny import draw


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    draw(folder / "dark", 20, 12)
    draw(folder / "light", 180, 12)
    return folder
