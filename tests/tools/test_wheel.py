"""setup.py: a built wheel carries what lies outside the Python files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """normdet's own wheel, built from a copy: a build writes into its source folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "normdet", "configs"):
        (source / name).symlink_to(REPO / name)
    command = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *command], cwd=source, check=True, timeout=300
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_the_wheel_carries_configs_and_sources(wheel):
    rooms = {"configs": "**/*.yaml", "normdet/ops/csrc": "*.cpp", "normdet/data/nuclei": "*"}
    for room, pattern in rooms.items():
        files = [path for path in (REPO / room).glob(pattern) if path.is_file()]
        assert files, f"{room} is empty"
        inside = "normdet/configs" if room == "configs" else room
        for path in files:
            name = f"{inside}/{path.relative_to(REPO / room).as_posix()}"
            assert wheel[name] == path.read_bytes()


@pytest.mark.slow
def test_the_wheel_is_the_package_alone(wheel):
    top = {name.split("/")[0] for name in wheel}
    assert {name for name in top if not name.endswith(".dist-info")} == {"normdet"}
    entry = next(text for name, text in wheel.items() if name.endswith("entry_points.txt"))
    assert b"normdet = normdet.cli:main" in entry
    metadata = next(text for name, text in wheel.items() if name.endswith("METADATA")).decode()
    assert "Requires-Python: >=3.10" in metadata
    assert "Requires-Dist: detectron2" not in metadata
