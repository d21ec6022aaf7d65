"""A stopped run goes on where it was, and what comes out is what comes of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from normdet.cli import main
from normdet.lock import held
from normdet.prepare import command
from tests.prepare.make import blobs, write_bowl, write_segmentation, write_series


def content(folder):
    """Every file but those that name the folder itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".yaml")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Reads:
    """Counts the stacks read, and stops the run before one of them."""

    def __init__(self, monkeypatch, stop_at=None):
        self.count, self.stop_at, self._read = 0, stop_at, command._read
        monkeypatch.setattr(command, "_read", self)

    def __call__(self, *args):
        if self.count == self.stop_at:
            raise KeyboardInterrupt
        self.count += 1
        return self._read(*args)


@pytest.fixture
def bowl(tmp_path):
    write_bowl(tmp_path / "in", [blobs(seed) for seed in range(5)])
    (tmp_path / "in/case3/images").rename(tmp_path / "in/case3/pictures")  # a fault to tell again
    return tmp_path / "in"


def stopped(monkeypatch, words, stop_at):
    with monkeypatch.context() as patch:
        Reads(patch, stop_at)
        assert main(words) == 128 + signal.SIGINT


def test_only_what_is_missing_is_read(bowl, tmp_path, monkeypatch, capsys):
    assert main(["prepare", str(bowl), "--out", str(tmp_path / "whole")]) == 0
    printed = capsys.readouterr()
    words = ["prepare", str(bowl), "--out", str(tmp_path / "out")]
    stopped(monkeypatch, words, 2)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    reads = Reads(monkeypatch)
    assert main(words) == 0
    again = capsys.readouterr()
    assert "going on where a stopped run was: 2 of" in again.err
    faults = [line for line in printed.err.splitlines() if line.startswith("fault")]
    assert [line for line in again.err.splitlines() if line.startswith("fault")] == faults
    assert reads.count == 2
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


@pytest.mark.parametrize("change", ["image", "mask", "window", "version"])
def test_what_changed_since_is_made_anew(bowl, tmp_path, monkeypatch, change):
    words = ["prepare", str(bowl), "--out", str(tmp_path / "out")]
    stopped(monkeypatch, words, 3)
    if change == "version":
        monkeypatch.setattr(command, "__version__", "999")
    elif change == "window":
        words += ["--window", "percentile"]
    else:
        folder = {"image": "images", "mask": "masks"}[change]
        file = next((bowl / "case0" / folder).iterdir())
        os.utime(file, (1, 1))
    reads = Reads(monkeypatch)
    assert main(words) == 0
    assert reads.count == 4


@pytest.mark.slow
def test_patients_are_known_again(tmp_path, monkeypatch):
    """The slices of a patient on both sides of the stop, and no key of theirs beside the images."""
    source = tmp_path / "in"
    for number in range(4):
        series, cases = f"1.2.3.{number}", [blobs(2 * number), blobs(2 * number + 1)]
        patient = f"MRN-42424{number % 2}"
        slices = write_series(source / series, cases, patient=patient, series=series)
        write_segmentation(source / series / "seg.dcm", slices, cases)
    words = ["prepare", str(source), "--val", "0.5", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    stopped(monkeypatch, [*words, str(tmp_path / "out")], 2)
    left = [path.read_bytes() for path in (tmp_path / ".out.part").rglob("*") if path.is_file()]
    assert left and not any(b"MRN-4242" in text for text in left)
    assert main([*words, str(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    images = json.loads((tmp_path / "out/train.json").read_text())["images"]
    assert len({image["patient"] for image in images}) == 1


@pytest.mark.slow
def test_after_a_kill(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_bowl(source, [blobs(seed, size=512, count=100) for seed in range(12)])
    words = [sys.executable, "-m", "normdet", "prepare", str(source), "--out", str(out)]
    run = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.part/stacks/*.npz")) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.005)
    run.kill()
    run.wait()
    assert not out.exists()
    assert main(words[3:]) == 0
    assert main(["prepare", str(source), "--out", str(tmp_path / "whole")]) == 0
    assert content(out) == content(tmp_path / "whole")


def test_two_at_once_do_not_meet(bowl, tmp_path, capsys):
    (tmp_path / ".out.part").mkdir()
    with held(tmp_path / ".out.part/lock", "busy"):
        assert main(["prepare", str(bowl), "--out", str(tmp_path / "out")]) == 2
    assert "is being prepared by another process" in capsys.readouterr().err
