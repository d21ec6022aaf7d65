"""Give this Python a working detectron2, keeping the one it has.

    python tools/install_detectron2.py

A detectron2 that imports is kept as it is. Where there is none, one is made from PyPI: upstream is
not on PyPI under its own name, but sal-detectron2 0.7.2 is a copy of its main branch of 2024-04-17
(commit a59f056, three Python files differ by a line each). That wheel is tagged for Python 3.10
because of one compiled file, `_C`, which normdet does not need, so the wheel is repacked without
it for every Python 3. What then lacks: rotated boxes, detectron2's own deformable convolution and
its C++ COCO evaluation. To have those, build upstream yourself, before or afterwards:

    pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'

The repacked wheel is named `detectron2`, not after the copy, so that pip replaces it cleanly by
upstream's build and counts it as present for packages that require detectron2. Its version,
0.6+main.20240417, is upstream's own number with the date of the commit behind it.
"""

import argparse
import base64
import hashlib
import importlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import warnings
import zipfile
from pathlib import Path

SOURCE = "sal-detectron2"
SOURCE_VERSION = "0.7.2"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
VERSION = "0.6+main.20240417"
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"

# setuptools 82 has no pkg_resources. Each old text must be found exactly once.
EDITS = {
    "detectron2/__init__.py": [('__version__ = "0.7.2"', '__version__ = "0.6"')],
    "detectron2/model_zoo/model_zoo.py": [
        ("import pkg_resources\n", "import importlib.resources\n"),
        (
            "pkg_resources.resource_filename(\n"
            '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
            "    )",
            "str(\n"
            '        importlib.resources.files("detectron2.model_zoo") / "configs" / config_path\n'
            "    )",
        ),
    ],
}
NETWORK_TROUBLE = re.compile(
    r"Retrying \(Retry\(|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout"
    r"|ProxyError|Network is unreachable|Connection aborted|IncompleteRead"
)


# How many of pip's last lines are shown when it fails.
LAST_LINES = 8


class InstallError(Exception):
    """Raised if a step cannot go on; its text is the sentence for the user.

    Attributes:
        last: pip's last lines, if pip failed.
    """

    def __init__(self, text, last=()):
        super().__init__(text)
        self.last = last


def show_download(line):
    """Print a line of pip if it reports a large download."""
    if re.match(r"\s*(Downloading|Using cached) \S+ \(.*[MG]B\)", line):
        print("  " + line.strip(), flush=True)


def run_pip(python, *arguments, log=None, show=show_download):
    """Run `python -m pip`; a failure includes its last lines.

    Args:
        python: the interpreter of the environment.
        *arguments: pip's own, the command first.
        log: an open text file that receives all of pip's output.
        show: is called with each line, to show progress.

    Raises:
        InstallError: pip failed; the sentence says why.
    """
    process = subprocess.Popen(
        [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "3", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    lines = []
    try:
        for line in process.stdout:
            show(line)
            if re.match(r"Progress \d+ of \d+$", line):
                continue
            lines.append(line)
            if log:
                log.write(line)
    except KeyboardInterrupt:
        # Ctrl-C reaches pip too. Let it clean up; killed now it would leave gigabytes in /tmp.
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.communicate()
        raise
    if process.wait():
        last = [line.rstrip() for line in lines if line.strip()][-LAST_LINES:]
        raise InstallError(explain("".join(lines), python), last)


def explain(output, python=sys.executable):
    """Return the sentence behind the `output` of a failed `python -m pip`."""
    if "No space left on device" in output:
        return "the disk is full: free some space (9 GB in all) and run this again"
    if "No module named pip" in output:
        return f"{python} has no pip: run `{python} -m ensurepip` first"
    if NETWORK_TROUBLE.search(output):
        return "no network: the Python package index cannot be reached; connect and run this again"
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return (
            f"{missing[1]} has no build for this machine and the Python {python}: "
            "try another Python between 3.10 and 3.14"
        )
    errors = re.findall(r"^(?:ERROR|error): (.+)$", output, re.MULTILINE)
    last = errors or output.strip().splitlines() or ["it said nothing"]
    return f"pip failed: {last[-1]}"


def working_detectron2():
    """Return the `(version, folder)` of the detectron2 that imports here, or None.

    Raises:
        InstallError: a dependency of detectron2 is missing, so detectron2 cannot be tested.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of torch
            for name in ("torch", "detectron2.config", "detectron2.modeling"):
                importlib.import_module(name)
    except Exception as error:  # of any kind; an old version raises an AttributeError from Pillow
        name = getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and not name.startswith("detectron2"):
            raise InstallError(
                f"the module {name}, which detectron2 imports, is missing: "
                "run `pip install -r requirements.txt` first"
            ) from error
        if name != "detectron2":
            print(f"the detectron2 here does not import ({error}): it is replaced", flush=True)
        return None
    package = sys.modules["detectron2"]
    return package.__version__, str(Path(package.__file__).parent)


def check_interpreter(environment=None, version=None):
    """Refuse an interpreter that pip could not install into, before anything is downloaded.

    Args:
        environment: folder packages go to; this interpreter's by default.
        version: `(major, minor)`; this interpreter's by default.

    Raises:
        InstallError: it is too old, managed by the system, or may not be written to.
    """
    major, minor = version or sys.version_info[:2]
    if (major, minor) < (3, 10):
        raise InstallError(f"Python 3.10 or newer is needed, and this one is {major}.{minor}")
    in_venv = sys.prefix != sys.base_prefix
    if not in_venv and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
        raise InstallError(
            "this Python belongs to the system: run this tool with the one of a virtual environment"
        )
    environment = Path(environment or sysconfig.get_path("purelib"))
    if not os.access(environment, os.W_OK):
        raise InstallError(
            f"{environment} may not be written to: "
            "run this tool with the Python of a virtual environment"
        )


def download(folder):
    """Fetch the source wheel from PyPI into `folder` and return its path.

    Raises:
        InstallError: the index cannot be reached or does not have it.
    """
    run_pip(
        sys.executable, "download", "--no-deps", "--only-binary=:all:",
        "--python-version", "3.10", "--implementation", "cp", "--abi", "none",
        "--platform", "any", "--dest", str(folder), f"{SOURCE}=={SOURCE_VERSION}",
    )  # fmt: skip
    return next(Path(folder).glob("*.whl"))


def check_hash(wheel):
    """Refuse a `wheel` that is not byte for byte the one this tool knows.

    Raises:
        InstallError: it cannot be read or its SHA-256 differs.
    """
    try:
        found = hashlib.sha256(Path(wheel).read_bytes()).hexdigest()
    except OSError as error:
        raise InstallError(f"cannot read {wheel}: {error.strerror}") from error
    if found != SOURCE_SHA256:
        raise InstallError(
            f"{wheel} is not the {SOURCE} {SOURCE_VERSION} this tool knows (SHA-256 {found}, "
            f"expected {SOURCE_SHA256}): it was not installed"
        )


def repack(wheel, folder):
    """Write the pure Python `detectron2` wheel made from `wheel` into `folder`; return its path.

    The same input gives the same bytes on every machine: names are sorted, times fixed, and
    nothing is compressed, since zlib's output differs between its versions.

    Raises:
        InstallError: a line to rewrite is not where it was.
    """
    old_info = f"{SOURCE.replace('-', '_')}-{SOURCE_VERSION}.dist-info/"
    new_info = f"detectron2-{VERSION}.dist-info/"
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("detectron2/") and not name.startswith("detectron2/_C."):
                files[name] = archive.read(name)
            elif name.startswith(old_info) and not name.endswith("/RECORD"):
                files[new_info + name[len(old_info) :]] = archive.read(name)
    for name, edits in EDITS.items():
        files[name] = rewrite(files[name].decode(), edits, name).encode()
    files[new_info + "METADATA"] = rewrite_metadata(files[new_info + "METADATA"].decode()).encode()
    files[new_info + "WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: normdet install_detectron2\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[new_info + "top_level.txt"] = b"detectron2\n"
    files[new_info + "RECORD"] = record(files, new_info + "RECORD")

    target = Path(folder) / WHEEL_NAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        # RECORD comes last, as the wheel format recommends.
        for name in sorted(files, key=lambda name: (name.endswith("/RECORD"), name)):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return target


def rewrite(text, edits, name):
    """Return `text` with every `(old, new)` of `edits` applied.

    Raises:
        InstallError: `old` is not in the file `name` exactly once.
    """
    for old, new in edits:
        if text.count(old) != 1:
            raise InstallError(f"{name} of {SOURCE} is not as expected: it was not installed")
        text = text.replace(old, new)
    return text


def rewrite_metadata(text):
    """Return METADATA under the new name, free of requirements that do not hold here.

    `numpy<2` guards only the compiled part, and nothing imports `black`.
    """
    headers, blank, description = text.partition("\n\n")
    kept = []
    for line in headers.splitlines():
        if line.startswith("Name:"):
            line = "Name: detectron2"
        elif line.startswith("Version:"):
            line = f"Version: {VERSION}"
        elif line.startswith("Summary:"):
            line = f"Summary: detectron2's Python part, repacked by normdet from {SOURCE} 0.7.2"
        elif re.match(r"Requires-Dist: numpy\b", line):
            line = "Requires-Dist: numpy"
        elif re.match(r"Requires-Dist: black\b", line):
            continue
        kept.append(line)
    return "\n".join(kept) + (blank + description if blank else "\n")


def record(files, own_name):
    """Return the RECORD of `files` (name to bytes): name, hash and size a line, its own last."""
    rows = []
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        rows.append(f"{name},sha256={digest.decode()},{len(files[name])}\n")
    return "".join([*rows, f"{own_name},,\n"]).encode()


def install(wheel=None, force=False, save=None):
    """Install as the command line asks.

    Args:
        wheel: a local copy of the source wheel, instead of a download.
        force: install even if a detectron2 works.
        save: folder that receives the repacked wheel; nothing is installed then.

    Raises:
        InstallError: with the sentence to show.
    """
    if save is None:
        check_interpreter()
        found = working_detectron2()
        if found and not force:
            print(f"detectron2 {found[0]} at {found[1]} works: kept")
            return
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            print(f"fetching {SOURCE} {SOURCE_VERSION} from the Python package index", flush=True)
            wheel = download(folder)
        check_hash(wheel)
        if save is not None:
            Path(save).mkdir(parents=True, exist_ok=True)
            print(repack(wheel, save))
            return
        repacked = repack(wheel, folder)
        run_pip(sys.executable, "install", "--no-deps", "--force-reinstall", str(repacked))
    # Use a new process, since this one may hold modules of the old detectron2.
    check = "import detectron2.modeling as m; print(m.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", check], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        reason = (result.stdout.strip().splitlines() or ["no message"])[-1]
        raise InstallError(f"detectron2 {VERSION} was installed but does not import: {reason}")
    place = Path(result.stdout.strip().splitlines()[-1]).parent.parent
    print(f"detectron2 {VERSION} installed at {place}")


def main(argv=None):
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--force", action="store_true", help="replace a detectron2 that works")
    parser.add_argument("--wheel", metavar="PATH", help=f"a local {SOURCE} {SOURCE_VERSION} wheel")
    parser.add_argument(
        "--save", metavar="FOLDER", help="leave the repacked wheel in FOLDER and install nothing"
    )
    args = parser.parse_args(argv)
    try:
        install(args.wheel, args.force, args.save)
    except InstallError as error:
        for line in error.last:
            print(f"  {line}", file=sys.stderr)
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_detectron2: interrupted; run it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
