"""Bash runs every block of the pages, with stand-ins that record their arguments.

Each call of `normdet` is then read by the command's own parser, its options parsed, its configs
found and its keys merged.
"""

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from normdet.cli import main
from normdet.config import config_names, load_config
from normdet.options import parse

from .pages import REPO, blocks, pages_with

# A stand-in writes its name and its arguments, each followed by a NUL, and a newline at the end.
_NOTE = '#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" >> "$CALLS"; printf "\\n\\0" >> "$CALLS"\n'
_PROGRAMS = ("normdet", "make", "pip", "python", "python3", "torchrun", "git")
_OURS = {name.partition("/")[0] for name in config_names()}


class _Parsed(Exception):
    """Raised to stop a command once its arguments are read."""

    def __init__(self, args: argparse.Namespace):
        super().__init__("parsed")
        self.found = args


@pytest.fixture
def parsed(monkeypatch):
    """Reads the words of a command by its own parser, without running it."""

    def stop(name):
        original = getattr(argparse.ArgumentParser, name)

        def read(parser, argv=None, namespace=None):
            raise _Parsed(original(parser, argv, namespace))

        monkeypatch.setattr(argparse.ArgumentParser, name, read)

    def run(words: list[str]) -> argparse.Namespace:
        with pytest.raises(_Parsed) as stopped:
            main(words)
        return stopped.value.found

    for name in ("parse_args", "parse_intermixed_args"):
        stop(name)
    return run


def _calls(text: str, folder: Path) -> list[list[str]]:
    """The programs that a block starts, with their arguments."""
    programs = folder / "bin"
    programs.mkdir()
    for name in _PROGRAMS:
        (programs / name).write_text(_NOTE)
        (programs / name).chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    env = {"PATH": str(programs), "CALLS": str(calls), "DATA": "/data"}
    bash = shutil.which("bash")
    done = subprocess.run(
        [bash, "-eu", "-c", text], env=env, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [call.split("\0")[:-1] for call in calls.read_text().split("\n\0")[:-1]]
    assert found, "the block starts nothing"
    return found


def _check_normdet(words: list[str], parsed) -> None:
    args = parsed(words)
    given = vars(args)
    for option in filter(None, (given.get("norm"), given.get("to"))):
        parse(option)
    for option in (given.get("norms") or "").split(",") if words[0] == "compare" else ():
        parse(option)
    if config := given.get("config_file"):
        ours = str(config).partition("/")[0] in _OURS
        # Files of the reader are replaced by ours of the same form.
        file = config if ours else "coco/mask_rcnn_R_50_FPN_1x.yaml"
        load_config(file, given.get("opts") or [], given.get("norm"), given.get("norm_parts"))


def _check_python(words: list[str]) -> None:
    if words and words[0].endswith(".py"):
        assert (REPO / words[0]).is_file()


def _check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    text = (REPO / "setup.py").read_text()
    for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
        for extra in extras.split(","):
            assert f'"{extra}":' in text


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets


@pytest.mark.parametrize("page", pages_with("bash"))
def test_every_command_is_parsed(page, parsed, tmp_path):
    for number, block in enumerate(blocks(page, "bash")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for program, *words in _calls(block.text, folder):
            if program == "torchrun":
                program, words = "normdet", words[words.index("normdet") + 1 :]
            if program == "normdet":
                _check_normdet(words, parsed)
            elif program == "pip":
                _check_pip(words)
            elif program == "make":
                _check_make(words)
            elif program.startswith("python"):
                _check_python(words)


def test_an_unknown_command_is_found(parsed, tmp_path):
    with pytest.raises(AssertionError, match="command not found"):
        _calls("normdte train", tmp_path)
    for words in (["train", "--no-such-flag"], ["convert", "a.pth"], ["train", "--norm"]):
        with pytest.raises(SystemExit):
            parsed(words)
