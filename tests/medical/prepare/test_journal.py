"""A stopped run goes on and gives the same result as one that was not stopped."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from normdet.cli import main
from normdet.medical.prepare import command
from normdet.medical.prepare.journal import Journal
from tests.medical.prepare.make import SECRETS, blobs, write_bowl, write_segmentation, write_series


def images(source):
    """Five images with labels, one of them without an object and one with halves in it."""
    for name in ("images", "labels"):
        (source / name).mkdir(parents=True)
    for index in range(5):
        case = blobs(index)
        Image.fromarray(case.pixels).save(source / "images" / f"{index}.png")
        Image.fromarray(case.labels * (index != 1)).save(source / "labels" / f"{index}.png")
    (source / "labels" / "0.png").unlink()
    Image.fromarray(blobs(0).labels.astype(np.float32) / 2).save(source / "labels" / "0.tif")


def patients(source):
    """Series of two patients, one of whom has the first and the last of the three."""
    cases = [blobs(seed) for seed in range(3)]
    for number, patient in enumerate(("MRN-424242", "MRN-424242-B", "MRN-424242")):
        series = f"1.2.3.{number}"
        slices = write_series(source / str(number), cases, patient=patient, series=series)
        write_segmentation(source / str(number) / "seg.dcm", slices, cases)


def coco(source):
    """Three images with boxes and polygons, in a file."""
    (source / "images").mkdir(parents=True)
    entries = []
    for index in range(3):
        pixels = (blobs(index).pixels >> 4).astype(np.uint8)
        Image.fromarray(pixels).save(source / "images" / f"{index}.png")
        polygon = [[4.5, 4.5, 30.25, 4.5, 30.25, 20.1 + index]]
        entries.append({"bbox": [4.5, 4.5, 25.75, 15.6 + index], "segmentation": polygon})
    write_coco(source, entries)


def write_coco(source, entries):
    """One object for each image."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 96, "width": 96}
            for i in range(len(entries))
        ],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 9.0, **entry}
            for i, entry in enumerate(entries)
        ],
        "categories": [{"id": 1, "name": "Zelle"}],
    }
    (source / "train.json").write_text(json.dumps(content))


def content_of(folder):
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Prepares `in` as `out`; stops in the source after so many; returns those read to the end."""
    read = []
    original = command.read_windowed

    def prepare(*options, stop_after=None, out="out", code=0):
        read.clear()

        def reading(source, *rest, **named):
            slices = original(source, *rest, **named)
            if len(read) == stop_after:
                yield next(slices)
                raise KeyboardInterrupt
            read.append(source.name)
            yield from slices

        monkeypatch.setattr(command, "read_windowed", reading)
        code = 130 if stop_after is not None else code
        argv = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / out), *options]
        assert main(argv) == code
        assert (tmp_path / out).exists() == (code == 0)
        return list(read)

    return prepare


@pytest.mark.parametrize("make", [images, pytest.param(patients, marks=pytest.mark.slow), coco])
def test_a_stopped_run_goes_on(tmp_path, run, capsys, make):
    make(tmp_path / "in")
    every = run(out="whole")
    expected = content_of(tmp_path / "whole")
    summary = capsys.readouterr().out.replace("whole", "out")
    first = run(stop_after=1)
    assert "the same command goes on" in capsys.readouterr().err
    second = run(stop_after=1)
    assert f"going on where a run was stopped: 1 of {len(every)}" in capsys.readouterr().err
    third = run()
    assert first + second + third == every, "no source is read twice"
    assert capsys.readouterr().out == summary
    assert content_of(tmp_path / "out") == expected
    left = {path.name for path in tmp_path.iterdir() if not path.name.endswith("-names.csv")}
    assert left == {"in", "out", "whole"}


@pytest.mark.slow
def test_no_patient_is_in_the_journal(tmp_path, run):
    patients(tmp_path / "in")
    run(stop_after=2)
    left = content_of(tmp_path / ".out-unfinished")
    assert len(left) == 1 + 6 + 1
    for secret in (*SECRETS, "1.2.3.", ".dcm"):
        for path, content in left.items():
            assert secret.encode() not in content and secret not in path.name, path
    # It also has no key of one, from which someone who guesses numbers could identify the patient.
    lines = left[next(path for path in left if path.name == "journal")].splitlines()
    names = set().union(*(json.loads(line.partition(b" ")[2])["images"][0] for line in lines))
    assert names == {
        "file_name", "height", "width", "objects", "ignore", "spacing", "sums", "named_by", "bytes"
    }  # fmt: skip
    assert os.stat(tmp_path / ".out-unfinished").st_mode & 0o077 == 0


def test_a_source_that_changed_is_read_again(tmp_path, run):
    images(tmp_path / "in")
    run(stop_after=4)
    case = blobs(7)
    Image.fromarray(case.pixels).save(tmp_path / "in/images/2.png")
    Image.fromarray(case.labels).save(tmp_path / "in/labels/3.png")
    (tmp_path / "in/labels/1.png").unlink()
    assert run() == ["images__2", "images__3", "images__4"]
    run(out="whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_an_annotation_that_changed_is_read_again(tmp_path, run):
    coco(tmp_path / "in")
    run(stop_after=2)
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["annotations"][1]["bbox"][0] = 3.0
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    assert run() == ["train_1", "train_2"]
    run(out="whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.parametrize("options", [["--window", "CT:500,900"], ["--skip-empty"]])
def test_other_arguments_begin_anew(tmp_path, run, options):
    images(tmp_path / "in")
    run(stop_after=3)
    assert len(run(*options)) == 5
    run(*options, out="whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_another_version_begins_anew(tmp_path, run, monkeypatch):
    images(tmp_path / "in")
    run(stop_after=3)
    monkeypatch.setattr(command, "__version__", "99")
    assert len(run()) == 5


def test_another_split_reads_nothing_again(tmp_path, run, monkeypatch):
    images(tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(command, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 130
    assert run("--val", "0") == []
    assert not (tmp_path / "out/val.json").exists()


def test_faults_are_counted_again_and_refused_if_they_stop(tmp_path, run, capsys):
    images(tmp_path / "in")
    run(stop_after=3)
    assert run("--on-error", "stop", code=2) == ["images__0"]
    assert "labels/0.tif is no label image" in capsys.readouterr().err
    assert run() == ["images__3", "images__4"]
    assert "faults   1" in capsys.readouterr().out


def test_an_image_that_is_gone_or_cut_and_a_line_that_is_cut(tmp_path, run):
    images(tmp_path / "in")
    run(stop_after=4)
    workshop = tmp_path / ".out-unfinished"
    (workshop / "data/images/images__1.png").write_bytes(b"")
    journal = workshop / "journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    assert run() == ["images__1", "images__3", "images__4"]
    run(out="whole")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


def test_two_at_once(tmp_path, run, capsys):
    images(tmp_path / "in")
    run(stop_after=2)
    with open(tmp_path / ".out-unfinished/journal", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run(code=2) == []
        assert "another `normdet prepare` is at work" in capsys.readouterr().err
    assert len(run()) == 3


def test_the_result_of_another_run_stays(tmp_path, run, monkeypatch):
    images(tmp_path / "in")
    original = command.draw

    def draw(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").touch()
        original(*arguments)

    monkeypatch.setattr(command, "draw", draw)
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_that_goes_as_it_is_opened_is_another_run_s(tmp_path, monkeypatch):
    original = fcntl.flock

    def gone(*arguments):
        original(*arguments)
        shutil.rmtree(tmp_path / "workshop")

    (tmp_path / "workshop").mkdir()
    monkeypatch.setattr(fcntl, "flock", gone)
    with pytest.raises(command.NormdetError, match="another `normdet prepare`"):
        Journal(tmp_path / "workshop")


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, run):
    write_bowl(tmp_path / "in", [blobs(seed, size=512, count=100) for seed in range(12)])
    every = run(out="whole")
    argv = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    killed = subprocess.Popen(
        [sys.executable, "-m", "normdet", *argv],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    journal, deadline = tmp_path / ".out-unfinished/journal", time.monotonic() + 400
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert killed.poll() is None, "over too soon to show anything"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "out").exists()
    rest = run()
    assert every[-len(rest) :] == rest and len(rest) < len(every) - 2
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("overwrite", "at"), [(False, "moved"), (True, "moved"), (False, "told")])
def test_a_run_killed_once_its_result_was_in_place_is_done(tmp_path, run, capsys, overwrite, at):
    images(tmp_path / "in")
    flags = ["--overwrite"] if overwrite else []
    if overwrite:
        run()
    argv = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *flags]
    # Killed by itself where it counts: the result is moved, the rest not told or not cleared away.
    name = {"moved": "_replace", "told": "_tell"}[at]
    code = f"""
import os, signal
from normdet.cli import main
from normdet.medical.prepare import command
step = command.{name}
command.{name} = lambda *args: (step(*args), os.kill(os.getpid(), signal.SIGKILL))
main({argv!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    before = content_of(tmp_path / "out")
    capsys.readouterr()
    assert main(argv) == 0
    assert f"{tmp_path / 'out'} is done" in capsys.readouterr().out
    assert content_of(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    # This is reported once; from now on the folder is an existing one.
    assert main(["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "exists" in capsys.readouterr().err


def test_another_command_is_not_done(tmp_path, capsys):
    images(tmp_path / "in")
    argv = ["prepare", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    workshop = tmp_path / ".out-unfinished"
    workshop.mkdir()
    (workshop / "finished").write_text("of other arguments or files")
    assert main(argv) == 2
    assert "exists" in capsys.readouterr().err
