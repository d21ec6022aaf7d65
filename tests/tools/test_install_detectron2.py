"""tools/install_detectron2.py keeps a working detectron2, repacks a wheel, and refuses bad ones."""

import base64
import hashlib
import subprocess
import sys
import zipfile

import pytest

OLD_INFO = "sal_detectron2-0.7.2.dist-info/"
NEW_INFO = "detectron2-0.6+main.20240417.dist-info/"
MODEL_ZOO = """import os
import pkg_resources


def get_config_file(config_path):
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
    if not os.path.exists(cfg_file):
        raise RuntimeError("{} not available in Model Zoo!".format(config_path))
    return cfg_file
"""
METADATA = """Metadata-Version: 2.1
Name: sal-detectron2
Version: 0.7.2
Summary: a copy
Requires-Dist: numpy<2
Requires-Dist: yacs>=0.1.8
Requires-Dist: black
Provides-Extra: dev
Requires-Dist: black==23.3.0; extra == "dev"

Description of detectron2, which asks for
Requires-Dist: black
"""


@pytest.fixture
def source(tmp_path, installer, monkeypatch):
    """A small wheel like the real one, with its hash set as the expected one."""
    path = tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("detectron2/__init__.py", '__version__ = "0.7.2"\n')
        archive.writestr("detectron2/_C.cpython-310-x86_64-linux-gnu.so", b"\x7fELF")
        archive.writestr("detectron2/model_zoo/__init__.py", "")
        archive.writestr("detectron2/model_zoo/model_zoo.py", MODEL_ZOO)
        archive.writestr("detectron2/model_zoo/configs/a/b.yaml", "MODEL: {}\n")
        archive.writestr("tools/train_net.py", "print('not ours')\n")
        archive.writestr(OLD_INFO + "METADATA", METADATA)
        archive.writestr(OLD_INFO + "WHEEL", "Tag: cp310-cp310-linux_x86_64\n")
        archive.writestr(OLD_INFO + "top_level.txt", "detectron2\ntools\n")
        archive.writestr(OLD_INFO + "RECORD", "stale\n")
    monkeypatch.setattr(installer, "SOURCE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def repacked(source, installer, tmp_path):
    """The wheel made from `source`, as name to bytes."""
    with zipfile.ZipFile(installer.repack(source, tmp_path)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_repacked_wheel_holds_the_python_part_alone(repacked):
    assert set(repacked) == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/__init__.py",
        "detectron2/model_zoo/model_zoo.py",
        "detectron2/model_zoo/configs/a/b.yaml",
        *(NEW_INFO + name for name in ("METADATA", "WHEEL", "top_level.txt", "RECORD")),
    }
    assert repacked[NEW_INFO + "top_level.txt"] == b"detectron2\n"
    assert b"Tag: py3-none-any\n" in repacked[NEW_INFO + "WHEEL"]


def test_repacked_metadata_drops_what_does_not_hold(repacked):
    headers, _, description = repacked[NEW_INFO + "METADATA"].decode().partition("\n\n")
    assert "Name: detectron2\nVersion: 0.6+main.20240417\n" in headers
    assert "Requires-Dist: numpy\n" in headers
    assert "Requires-Dist: yacs>=0.1.8" in headers
    assert "black" not in headers
    assert "Requires-Dist: black" in description


def test_record_lists_every_file_with_its_hash_and_size(repacked):
    rows = repacked[NEW_INFO + "RECORD"].decode().splitlines()
    assert rows.pop() == NEW_INFO + "RECORD,,"
    assert [row.split(",")[0] for row in rows] == sorted(set(repacked) - {NEW_INFO + "RECORD"})
    for row in rows:
        name, digest, size = row.split(",")
        algorithm, _, encoded = digest.partition("=")
        assert algorithm == "sha256"
        padded = encoded + "=" * (-len(encoded) % 4)
        assert base64.urlsafe_b64decode(padded) == hashlib.sha256(repacked[name]).digest()
        assert int(size) == len(repacked[name])


def test_model_zoo_finds_its_configs_without_pkg_resources(source, installer, tmp_path):
    place = tmp_path / "site"
    with zipfile.ZipFile(installer.repack(source, tmp_path)) as archive:
        archive.extractall(place)
    code = (
        "import sys; sys.modules['pkg_resources'] = None\n"
        "from detectron2.model_zoo import model_zoo\n"
        "print(open(model_zoo.get_config_file('a/b.yaml')).read())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "MODEL: {}"


def test_the_same_wheel_gives_the_same_bytes(source, installer, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (installer.repack(source, folder).read_bytes() for folder in folders)
    assert one == two


def test_an_unexpected_line_is_refused(installer, source, tmp_path):
    changed = tmp_path / "changed.whl"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            text = old.read(name).replace(b"pkg_resources.resource_filename", b"elsewhere")
            new.writestr(name, text)
    with pytest.raises(installer.InstallError, match=r"model_zoo\.py of .* is not as expected"):
        installer.repack(changed, tmp_path)


def test_another_hash_is_refused_and_nothing_written(installer, source, tmp_path, capsys):
    source.write_bytes(source.read_bytes()[:-1])
    save = tmp_path / "save"
    assert installer.main(["--wheel", str(source), "--save", str(save)]) == 1
    assert not save.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "SHA-256" in error and source.name in error


def test_a_missing_wheel_is_named(installer, tmp_path, capsys):
    assert installer.main(["--wheel", str(tmp_path / "no.whl"), "--save", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("no.whl: No such file or directory\n")


def test_save_leaves_the_wheel_and_installs_nothing(installer, source, tmp_path, monkeypatch):
    monkeypatch.setattr(installer, "run_pip", lambda *arguments: pytest.fail("pip was called"))
    assert installer.main(["--wheel", str(source), "--save", str(tmp_path / "save")]) == 0
    assert [path.name for path in (tmp_path / "save").iterdir()] == [installer.WHEEL_NAME]


def test_a_working_detectron2_is_kept(installer, monkeypatch, capsys):
    pytest.importorskip("detectron2")
    monkeypatch.setattr(installer, "check_interpreter", lambda: None)
    monkeypatch.setattr(installer, "download", lambda folder: pytest.fail("it was downloaded"))
    assert installer.main([]) == 0
    assert capsys.readouterr().out.endswith("works: kept\n")


def test_a_missing_dependency_is_not_taken_for_a_broken_detectron2(installer, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(installer.InstallError, match=r"the module torch, .* is missing"):
        installer.working_detectron2()


def test_a_broken_detectron2_is_replaced(installer, monkeypatch, capsys, source, tmp_path):
    def broken(name):
        if name != "torch":
            raise AttributeError("module 'PIL.Image' has no attribute 'LINEAR'")

    calls = []
    monkeypatch.setattr(installer.importlib, "import_module", broken)
    monkeypatch.setattr(installer, "check_interpreter", lambda: None)
    monkeypatch.setattr(installer, "run_pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(installer.sys, "executable", "/bin/echo")
    assert installer.main(["--wheel", str(source)]) == 0
    assert "LINEAR" in capsys.readouterr().out
    assert calls[0][1:4] == ("install", "--no-deps", "--force-reinstall")
    assert calls[0][4].endswith(installer.WHEEL_NAME)


def test_an_old_python_and_a_locked_folder_are_refused(installer, monkeypatch, tmp_path):
    with pytest.raises(installer.InstallError, match=r"3\.10 or newer is needed.* is 3\.8"):
        installer.check_interpreter(tmp_path, (3, 8))
    monkeypatch.setattr(installer.sys, "base_prefix", "elsewhere")
    installer.check_interpreter(tmp_path)
    monkeypatch.setattr(installer.os, "access", lambda path, mode: False)
    with pytest.raises(installer.InstallError, match="may not be written to"):
        installer.check_interpreter(tmp_path)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("/usr/bin/python3: No module named pip", "has no pip"),
        (
            "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken\n"
            "ERROR: No matching distribution found for torch==2.14.1",
            "no network",
        ),
        ("ERROR: No matching distribution found for torch==2.14.1", "torch==2.14.1 has no build"),
        ("ERROR: first\nERROR: Invalid requirement: 'x'", "Invalid requirement: 'x'"),
        ("", "it said nothing"),
    ],
)
def test_a_failure_of_pip_becomes_one_sentence(installer, output, sentence):
    explained = installer.explain(output)
    assert sentence in explained
    assert "\n" not in explained


def test_run_pip_shows_large_downloads_and_logs_all(installer, stub_python, tmp_path, capsys):
    answer = "Collecting a\n  Downloading a-1.whl (3.1 MB)\n  Downloading a-1.whl.metadata (4 kB)"
    python = stub_python("python", answer)
    with (tmp_path / "log").open("w") as log:
        installer.run_pip(python, "install", "a", log=log)
    assert capsys.readouterr().out == "  Downloading a-1.whl (3.1 MB)\n"
    assert (tmp_path / "log").read_text() == answer + "\n"


def test_run_pip_raises_what_failed(installer, stub_python):
    python = stub_python("python", "ERROR: the index is on fire", status=1)
    with pytest.raises(installer.InstallError, match="the index is on fire"):
        installer.run_pip(python, "install", "a")


def test_an_interrupted_pip_is_left_to_clean_up(installer, tmp_path, monkeypatch):
    def interrupt(*words, **options):
        raise KeyboardInterrupt

    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\necho 'Downloading a (3.1 MB)'\nsleep 0.3\ntouch {tmp_path}/clean"
    )
    python.chmod(0o755)
    monkeypatch.setattr("builtins.print", interrupt)
    with pytest.raises(KeyboardInterrupt):
        installer.run_pip(python, "install", "a")
    assert (tmp_path / "clean").exists()
