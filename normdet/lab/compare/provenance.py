"""The origin of a run: commit, versions, machine."""

import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import detectron2

import normdet
from normdet.files.versions import as_text, installed
from normdet.lab.bench.measure import machine


def versions() -> Iterator[tuple[str, str]]:
    """The packages and their versions."""
    yield from installed("normdet", "torch", "torchvision", "numpy", "pycocotools")
    yield "detectron2", detectron2.__version__
    yield "Python", platform.python_version()


def provenance(log: str) -> dict[str, str]:
    """The columns `commit`, `versions` and `machine` of a run on this machine.

    Args:
        log: of the run. It names the GPU; asking CUDA here would take memory of the GPU.
    """
    gpu = re.search(r"^GPU [\d,]+ +(.+?)(?: \(arch.*)?$", log, re.MULTILINE)
    return {
        "commit": commit(),
        "versions": as_text(versions()),
        "machine": gpu[1].strip() if gpu else f"{machine('cpu')}, {os.cpu_count()} cores",
    }


@functools.cache
def commit() -> str:
    """The commit of the checkout that normdet runs from, `+` if it was changed; "" for none."""
    folder = Path(normdet.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # An installed copy may lie inside some other project's checkout.
        if not git("ls-files", "--error-unmatch", "__init__.py"):
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except OSError:
        return ""
