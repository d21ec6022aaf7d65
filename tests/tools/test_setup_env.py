"""tools/setup_env.py chooses a Python, names what is missing, and repairs the environment."""

import collections
import re
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
Usage = collections.namedtuple("Usage", "total used free")
GB = 10**9


def test_the_first_recent_python_is_taken(setup_env, stub_python):
    candidates = [
        stub_python("old", "3 8 1"),
        stub_python("shim", "no such version", status=127),
        stub_python("unable", "3 11 0"),
        stub_python("newer", "3 15 1"),
        good := stub_python("good", "3 12 1"),
        stub_python("later", "3 13 1"),
    ]
    assert setup_env.choose_python(candidates=candidates) == (good, (3, 12))


def test_a_python_newer_than_those_tried_will_do(setup_env, stub_python):
    newer = stub_python("newer", "3 15 1")
    assert setup_env.choose_python(candidates=[newer]) == (newer, (3, 15))


def test_the_python_the_user_names_is_the_one(setup_env, stub_python):
    named = stub_python("named", "3 10 1")
    assert setup_env.choose_python(named) == (named, (3, 10))


def test_this_very_python_answers_the_probe(setup_env):
    assert setup_env.probe(sys.executable)[1] == sys.version_info[:2]


def test_the_faults_of_each_python_are_named(setup_env, stub_python):
    def refusal(*arguments, **options):
        with pytest.raises(setup_env.SetupError) as caught:
            setup_env.choose_python(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    old = stub_python("python3.8", "3 8 1")
    unable = stub_python("python3.11", "3 11 0")
    assert f"newer is needed and {old} is 3.8" in refusal(old)
    assert f"newer is needed and {old} is 3.8" in refusal(candidates=[old])
    assert "apt install python3.11-venv" in refusal(candidates=[old, unable])
    assert "no Python found" in refusal(candidates=["/no/such/python"])
    assert "PYTHON=/no/such/python does not run" in refusal("/no/such/python")


def test_an_old_python_ends_the_command_in_one_line(setup_env, stub_python, capsys):
    assert setup_env.main(["--python", stub_python("old", "2 7 0")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("setup: Python 3.10 or newer is needed")
    assert error.count("\n") == 1


def test_a_full_disk_is_refused_before_the_download(setup_env, tmp_path):
    venv = tmp_path / ".venv"
    with pytest.raises(setup_env.SetupError, match=r"needs 9\.5 GB free and has 9\.0$"):
        setup_env.check_disk(venv, tmp_path, usage=lambda folder: Usage(0, 0, 9 * GB))
    setup_env.check_disk(venv, tmp_path, usage=lambda folder: Usage(0, 0, 10 * GB))


def test_a_small_temporary_folder_is_named(setup_env, tmp_path):
    temporary = tmp_path / "temporary"

    def usage(folder):
        return Usage(0, 0, 1 * GB if folder == temporary else 7 * GB)

    with pytest.raises(setup_env.SetupError, match=r"temporary needs 3\.0 GB .* point TMPDIR"):
        setup_env.check_disk(tmp_path / ".venv", temporary, usage=usage, device=str)


def test_installed_packages_need_no_space(setup_env, tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "big").write_bytes(b"x" * 1000)
    monkeypatch.setattr(setup_env, "VENV_BYTES", 1000)
    setup_env.check_disk(tmp_path, tmp_path, usage=lambda folder: Usage(0, 0, 0))


def test_half_installed_packages_are_forgotten(setup_env, tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, record in [("whole-1.dist-info", True), ("half-2.dist-info", False)]:
        (site / name).mkdir(parents=True)
        (site / name / "METADATA").write_text("Metadata-Version: 2.1\n")
        if record:
            (site / name / "RECORD").write_text("")
    setup_env.remove_half_installed(tmp_path)
    assert [path.name for path in site.iterdir()] == ["whole-1.dist-info"]


def test_a_folder_that_is_no_environment_is_left_alone(setup_env, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(setup_env.SetupError, match="is not an environment"):
        setup_env.make_venv(tmp_path, sys.executable, sys.version_info[:2])
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.slow
def test_a_broken_environment_is_made_anew_and_a_working_one_kept(setup_env, tmp_path, capsys):
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "pyvenv.cfg").write_text("home = /gone\n")
    (venv / "leftover").write_text("")
    setup_env.make_venv(venv, sys.executable, sys.version_info[:2])
    assert setup_env.environment_version(venv) == sys.version_info[:2]
    assert not (venv / "leftover").exists()
    (venv / "kept").write_text("")
    setup_env.make_venv(venv, sys.executable, sys.version_info[:2])
    assert (venv / "kept").exists()
    assert capsys.readouterr().out.count("making") == 1


@pytest.fixture
def prepared(setup_env, tmp_path, monkeypatch, stub_python):
    """`prepare` without its slow steps: returns the environment's folder and the list of fills."""
    venv = tmp_path / ".venv"
    fills = []

    def make(venv, python, version):
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").write_text("")

    monkeypatch.setattr(setup_env, "check_disk", lambda venv: None)
    monkeypatch.setattr(setup_env, "make_venv", make)
    monkeypatch.setattr(setup_env, "fill", lambda venv, log, pins: fills.append(pins))
    monkeypatch.setattr(setup_env, "CANDIDATES", [stub_python("python3", "3 11 1")])
    return venv, fills


def test_nothing_is_done_twice_and_a_change_is_noticed(setup_env, prepared, monkeypatch):
    venv, fills = prepared
    setup_env.prepare(venv)
    setup_env.prepare(venv)
    assert len(fills) == 1
    monkeypatch.setattr(setup_env, "fingerprint", lambda pins: "another")
    setup_env.prepare(venv)
    assert len(fills) == 2


def test_an_interrupted_run_is_not_taken_for_done(setup_env, prepared, monkeypatch):
    venv, fills = prepared
    setup_env.prepare(venv)
    monkeypatch.setattr(setup_env, "fingerprint", lambda pins: "another")

    def interrupted(venv, log, pins):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup_env, "fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            setup_env.prepare(venv)
    setup_env.prepare(venv)
    assert len(fills) == 2


def test_another_python_than_the_environments_is_refused(
    setup_env, prepared, monkeypatch, stub_python
):
    venv, _ = prepared
    monkeypatch.setattr(setup_env, "environment_version", lambda venv: (3, 11))
    with pytest.raises(setup_env.SetupError, match=r"Python 3\.11: delete it to have 3\.12"):
        setup_env.prepare(venv, stub_python("python3.12", "3 12 1"))


def test_the_fingerprint_follows_its_files_and_their_place(setup_env, tmp_path):
    def copy(root, pins):
        for name in (setup_env.PINS, *setup_env.INPUTS):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(pins if name == setup_env.PINS else "")
        return setup_env.fingerprint(root)

    first = copy(tmp_path / "a", "torch==1\n")
    assert copy(tmp_path / "a", "torch==1\n") == first
    assert copy(tmp_path / "a", "torch==2\n") != first
    assert copy(tmp_path / "b", "torch==1\n") != first


def test_the_inputs_of_the_fingerprint_exist(setup_env):
    prints = {setup_env.fingerprint(pins=pins) for pins in (setup_env.PINS, setup_env.OLDEST_PINS)}
    assert [len(one) for one in prints] == [64, 64]


def test_the_oldest_versions_are_for_the_oldest_python(setup_env, prepared, stub_python):
    venv, fills = prepared
    with pytest.raises(setup_env.SetupError, match=r"for Python 3\.10 and \S+ is 3\.11"):
        setup_env.prepare(venv, stub_python("python3.11", "3 11 1"), oldest=True)
    setup_env.prepare(venv, stub_python("python3.10", "3 10 1"), oldest=True)
    assert fills == [setup_env.OLDEST_PINS]


def test_setup_py_claims_what_the_oldest_versions_are():
    pins = dict(
        line.lower().split("==")
        for line in (REPO / "requirements-oldest.txt").read_text().splitlines()
        if "==" in line
    )
    claims = re.findall(r'"([\w-]+)(?:\[.*?\])?>=([\d.]+)"', (REPO / "setup.py").read_text())
    assert {"torch", "torchvision", "numpy", "pillow"} < {name for name, _ in claims}
    wrong = [
        f"{name} {claim}: {pins[name]}"
        for name, claim in claims
        if name in pins and f"{claim}.0.0".split(".")[:3] != f"{pins[name]}.0".split(".")[:3]
    ]
    assert not wrong
    untried = {"faster-coco-eval", "myst-nb", "ray", "sphinx"}
    assert {name for name, _ in claims} - set(pins) == untried


def test_every_pin_is_exact():
    pins = (REPO / "requirements.txt").read_text()
    lines = [line for line in pins.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "==" not in line.partition(";")[0]] == []
