"""The command line: what it says, what it returns, and that it starts quickly."""

import errno
import re
import subprocess
import sys
import threading

import pytest
import yaml

from normdet import NormdetError, __version__, cli
from normdet.config import config_names, load_config
from normdet.engine import Interrupted


def test_help_needs_no_torch():
    code = (
        "import sys; from normdet.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train a detector" in done.stdout
    assert done.stdout.endswith("False\n")


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"normdet {__version__}\n"


def test_an_unknown_command_lists_the_known(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    assert end.value.code == 2
    assert re.search("choose from .*train.*eval", capsys.readouterr().err)


def test_norms_prints_a_row_for_every_method(capsys):
    assert cli.main(["norms"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("FrozenBN", "SyncBN", "FRN", "TLU", "WS", "1911.09737"))


def test_configs_are_listed(capsys):
    assert cli.main(["configs", "ls"]) == 0
    assert capsys.readouterr().out.split() == config_names()


def test_a_copied_config_stands_alone_and_is_not_overwritten(tmp_path, capsys):
    name = "quickstart/frn_tlu.yaml"
    assert cli.main(["configs", "cp", name, str(tmp_path)]) == 0
    copy = tmp_path / "frn_tlu.yaml"
    assert "_BASE_" not in yaml.safe_load(copy.read_text())
    assert load_config(copy).dump() == load_config(name).dump()
    assert cli.main(["configs", "cp", name, str(tmp_path)]) == 2
    assert f"{copy} already exists" in capsys.readouterr().err


def test_bad_input_is_one_line(capsys):
    argv = ["train", "--config-file", "quickstart/gn.yaml", "--norm", "GM"]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("normdet: error: ") and err.count("\n") == 1
    assert "'GN'" in err


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (NormdetError("KEY is wrong"), 2, "normdet: error: KEY is wrong\n"),
        (Interrupted("saved", 15), 143, "normdet: saved\n"),
        (KeyboardInterrupt(), 130, "normdet: interrupted\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, text):
    def fail():
        raise raised

    monkeypatch.setattr("normdet.options.table", fail)
    assert cli.main(["norms"]) == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("command", ["train", "eval"])
def test_evaluation_is_training_that_only_evaluates(monkeypatch, command):
    seen = []
    monkeypatch.setattr("normdet.engine.train", seen.append)
    assert cli.main([command, "--config-file", "a.yaml", "A", "b"]) == 0
    assert seen[0].config_file == "a.yaml" and seen[0].opts == ["A", "b"]
    assert seen[0].eval_only == (command == "eval")


@pytest.mark.parametrize("name", sorted(cli.TRAINING | cli.DELEGATED))
def test_every_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: normdet {name}")


def test_a_full_disk_is_a_sentence_wherever_it_strikes(monkeypatch, capsys):
    def full(args):
        raise OSError(errno.ENOSPC, "No space left on device", "run/metrics.json")

    monkeypatch.setattr("normdet.engine.train", full)
    assert cli.main(["train", "--config-file", "quickstart/gn.yaml"]) == 2
    assert "the disk is full for run/metrics.json (No space left" in capsys.readouterr().err


def test_a_full_disk_in_a_thread_is_a_line_and_a_bug_stays_one(monkeypatch, capsys):
    def fail(error):
        raise error

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    assert cli.main(["norms"]) == 0
    full = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, full, KeyError("a bug")):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    told = capsys.readouterr().err
    assert told.count("normdet: warning: the disk is full (No space left on device)") == 1
    assert told.count("Traceback") == 1 and "KeyError: 'a bug'" in told


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "x/metrics.json"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_is_a_sentence(monkeypatch, capsys, error):
    def fails():
        raise error

    monkeypatch.setattr("normdet.options.table", fails)
    assert cli.main(["norms"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("normdet: error: the disk is full") and "--resume goes on" in told
    assert told.count("\n") == 1
