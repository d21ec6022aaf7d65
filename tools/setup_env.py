"""Make `.venv` beside the Makefile, with everything normdet needs: what `make setup` runs.

    python3 tools/setup_env.py [--python /path/to/python3] [--oldest]

`--oldest` makes `.venv-oldest` with the oldest versions that setup.py claims (`make test-oldest`).
Only the standard library is used. Nothing is done when nothing changed since the last time, and a
run that was interrupted is continued by the next one. What is missing is said in one sentence.
"""

# This file must start on any Python 3 from 3.6, to say that an old one is too old. It imports
# install_detectron2.py only after a newer Python has taken over.

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
NEWEST_TRIED = (3, 14)
CANDIDATES = ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.14"]
PINS = "requirements.txt"
OLDEST_PINS = "requirements-oldest.txt"  # for Python 3.10 alone
INPUTS = [
    "setup.py",
    "normdet/version.py",
    "tools/setup_env.py",
    "tools/install_detectron2.py",
]
GB = 10**9
DOWNLOAD_BYTES = 3 * GB  # in the temporary folder until they are installed
VENV_BYTES = 13 * GB // 2
PROBE = """
import sys
try:
    import ensurepip, venv
    able = 1
except ImportError:
    able = 0
print("%d %d %d" % (sys.version_info[0], sys.version_info[1], able))
"""


class SetupError(Exception):
    """Raised if something is missing; its text is the sentence for the user."""


def dotted(version):
    """Return `(3, 11)` as `3.11`."""
    return ".".join(str(number) for number in version)


def probe(command):
    """Return `(path, (major, minor), can make environments)` of a Python, or None if none runs."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        output = subprocess.check_output(
            [path, "-c", PROBE], stderr=subprocess.DEVNULL, timeout=60
        ).decode()
        major, minor, able = (int(word) for word in output.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return path, (major, minor), bool(able)


def choose_python(wanted=None, candidates=None):
    """Return `(path, (major, minor))` of the Python to build the environment from.

    Args:
        wanted: the one the user named; nothing else is tried then.
        candidates: commands to try in turn; the first that was tried with normdet wins over newer.

    Raises:
        SetupError: there is none, it is too old, or it cannot make environments.
    """
    if wanted:
        found = [probe(wanted)]
        if found == [None]:
            raise SetupError(f"PYTHON={wanted} does not run as a Python")
    else:
        found = [probe(command) for command in candidates or CANDIDATES]
        found = [one for one in found if one]
    if not found:
        raise SetupError(
            "no Python found: install Python 3.10 or newer, or name it with PYTHON=/path/to/python3"
        )
    recent = [one for one in found if one[1] >= OLDEST]
    if not recent:
        path, version, _ = max(found, key=lambda one: one[1])
        raise SetupError(
            f"Python 3.10 or newer is needed and {path} is {dotted(version)}: install a newer one, "
            "or name it with PYTHON=/path/to/python3"
        )
    able = [one for one in recent if one[2]]
    if not able:
        path, version, _ = recent[0]
        raise SetupError(
            f"{path} has no venv or pip module: on Debian or Ubuntu run "
            f"`apt install python{dotted(version)}-venv`"
        )
    path, version, _ = next((one for one in able if one[1] <= NEWEST_TRIED), able[0])
    return path, version


def fingerprint(root=ROOT, pins=PINS):
    """Return a hash of everything that decides what is in the environment, and of its place."""
    digest = hashlib.sha256(str(root).encode())
    for name in [pins, *INPUTS]:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def folder_bytes(folder):
    """Return the size of all files under `folder`, 0 if there is none."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(str(folder))
        for name in names
    )


def check_disk(venv, temporary=None, usage=shutil.disk_usage, device=None):
    """Refuse to begin if the disk is too small.

    Args:
        venv: the environment's folder, whose present content needs no more space.
        temporary: the folder pip downloads to.
        usage: as `shutil.disk_usage`.
        device: path to the number of its disk.

    Raises:
        SetupError: naming the folder and the space it lacks.
    """
    device = device or (lambda path: os.stat(str(path)).st_dev)
    temporary = temporary or tempfile.gettempdir()
    home = str(venv if venv.exists() else venv.parent)
    held = folder_bytes(venv)
    missing = max(VENV_BYTES - held, 0)
    download = min(DOWNLOAD_BYTES, missing)
    if device(temporary) == device(home):
        needed = [(home, missing + download)]
    else:
        needed = [(home, missing), (temporary, download)]
    for folder, size in needed:
        free = usage(folder).free
        if free < size:
            advice = "" if folder == home else "; point TMPDIR at a larger disk"
            raise SetupError(
                f"not enough disk: {folder} needs {size / GB:.1f} GB free "
                f"and has {free / GB:.1f}{advice}"
            )


def environment_python(venv):
    """Return the path of the environment's own Python."""
    return venv / "bin" / "python"


def environment_version(venv):
    """Return `(major, minor)` of an environment whose Python and pip run, else None."""
    python = str(environment_python(venv))
    code = "import sys, pip._internal; print('%d %d' % sys.version_info[:2])"
    try:
        output = subprocess.check_output([python, "-c", code], stderr=subprocess.DEVNULL)
        major, minor = output.decode().split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return int(major), int(minor)


def make_venv(venv, python, version):
    """Create the environment, or keep the one that works.

    Raises:
        SetupError: the folder holds something else, or `python` cannot make one.
    """
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SetupError(f"{venv} is not an environment: move it away first")
    current = environment_version(venv)
    if current and current >= OLDEST:
        return
    print(f"making {venv} with Python {dotted(version)} ({python})", flush=True)
    command = [python, "-m", "venv", "--clear", str(venv)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        words = result.stdout.decode(errors="replace").strip().splitlines() or ["no message"]
        raise SetupError(f"{python} -m venv failed: {words[-1]}")


def remove_half_installed(venv):
    """Remove the records of packages whose installation was cut short, so that pip redoes them.

    pip writes a package's RECORD last, yet takes its METADATA alone for an installed package.
    """
    for info in venv.glob("lib/python3*/site-packages/*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(str(info))


def pinned(requirements):
    """Return the names of the packages that a file of requirements pins."""
    with open(requirements, encoding="utf-8") as file:
        lines = [line.partition("#")[0] for line in file]
    return {line.partition("==")[0].strip().lower() for line in lines if "==" in line}


def fill(venv, log, pins=PINS):
    """Install the pinned packages, detectron2 and normdet itself into the environment.

    Args:
        venv: its folder.
        log: an open text file that receives all pip says.
        pins: the file of requirements.

    Raises:
        SetupError: a step failed.
    """
    from install_detectron2 import InstallError, run_pip
    from pip_progress import Progress

    # pip's cache keeps downloads for the next try after an interruption; it needs their size again.
    roomy = shutil.disk_usage(str(venv)).free > VENV_BYTES + 2 * DOWNLOAD_BYTES
    cache = [] if roomy else ["--no-cache-dir"]
    python = environment_python(venv)
    pins = str(ROOT / pins)
    print("installing the pinned packages (about 3 GB to download at first)", flush=True)
    try:
        run_pip(python, "install", "--constraint", pins, "pip", "setuptools", "wheel", log=log)
        site = next(venv.glob("lib/python3*/site-packages"))
        with Progress(site, expected=len(pinned(pins))) as progress:
            packages = ["install", *cache, "--progress-bar", "raw", "--requirement", pins]
            run_pip(python, *packages, log=log, show=progress.line)
        if subprocess.call([str(python), str(ROOT / "tools" / "install_detectron2.py")]):
            raise SetupError("detectron2 could not be installed, for the reason above")
        own = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
        run_pip(python, "install", *own, log=log)
    except InstallError as error:
        for line in error.last:
            print(f"  {line}", file=sys.stderr)
        raise SetupError(f"{error} (all that pip said: {log.name})") from error


def prepare(venv, wanted=None, oldest=False):
    """Bring the environment up to date.

    Args:
        venv: its folder.
        wanted: the Python the user named.
        oldest: whether it is the one of the oldest versions.

    Raises:
        SetupError: with the sentence to show.
    """
    pins = OLDEST_PINS if oldest else PINS
    if oldest:
        wanted = wanted or "python" + dotted(OLDEST)
    chosen = choose_python(wanted) if wanted else None
    if chosen and oldest and chosen[1] != OLDEST:
        raise SetupError(
            f"{OLDEST_PINS} is for Python {dotted(OLDEST)} and {chosen[0]} is "
            f"{dotted(chosen[1])}: name one with PYTHON=/path/to/python{dotted(OLDEST)}"
        )
    if chosen:
        current = environment_version(venv)
        if current and current != chosen[1]:
            raise SetupError(
                f"{venv} is made with Python {dotted(current)}: "
                f"delete it to have {dotted(chosen[1])}"
            )
    stamp = venv / "normdet-setup"
    wish = fingerprint(pins=pins)
    if environment_python(venv).exists() and stamp.exists() and stamp.read_text() == wish:
        print(f"{venv} is up to date", flush=True)
        return
    python, version = chosen or choose_python()
    if sys.version_info < OLDEST:
        flags = ["--python", python] + ["--oldest"] * oldest
        os.execv(python, [python, os.path.abspath(__file__), *flags])
    if stamp.exists():
        stamp.unlink()
    check_disk(venv)
    make_venv(venv, python, version)
    remove_half_installed(venv)
    with (venv / "setup.log").open("w", encoding="utf-8") as log:
        fill(venv, log, pins)
    # Rename the stamp into place, so that it is either whole or absent.
    fresh = stamp.with_suffix(".new")
    fresh.write_text(wish)
    fresh.replace(stamp)
    print(f"{venv} is ready", flush=True)


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="", help="the Python to build the environment from")
    parser.add_argument("--oldest", action="store_true", help="make .venv-oldest instead")
    args = parser.parse_args(argv)
    try:
        prepare(ROOT / (".venv-oldest" if args.oldest else ".venv"), args.python, args.oldest)
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    except (SetupError, OSError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
