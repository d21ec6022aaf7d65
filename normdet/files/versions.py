"""Which versions of which packages are installed."""

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from normdet.errors import NormdetError
from normdet.version import __version__


def installed(*packages: str) -> Iterator[tuple[str, str]]:
    """Name and version of each package that is installed.

    Args:
        packages: names as on PyPI; normdet, which may run from a checkout, is always there.
    """
    for package in packages:
        try:
            yield package, __version__ if package == "normdet" else version(package)
        except PackageNotFoundError:
            continue


def as_text(versions: Iterator[tuple[str, str]]) -> str:
    """Names and versions as one line of text."""
    return ", ".join(f"{package} {number}" for package, number in versions)


@contextlib.contextmanager
def need_export(what: str) -> Iterator[None]:
    """Name the way out where `detectron2.export` cannot be imported.

    Args:
        what: needs it, for the message.

    Raises:
        NormdetError: that of detectron2 v0.6 wants caffe2, which torch no longer brings.
    """
    try:
        yield
    except ImportError as error:
        raise NormdetError(
            f"{what} needs detectron2.export, which cannot be imported ({error}): detectron2 v0.6 "
            "wants caffe2 for it, newer ones do not"
        ) from error
