"""Which versions of which packages are installed."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

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
