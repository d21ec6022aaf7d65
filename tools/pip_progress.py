"""Show pip's progress: a bar on a terminal, a line for each package elsewhere."""

import re
import shutil
import sys
import threading

WHEEL = re.compile(
    r"\s*(?:Downloading|Using cached) (?:\S*/)?(\S+?)-(\d[^-\s]*)\S*\.(?:whl|tar\.gz) \((.+)\)"
)
BYTES = re.compile(r"Progress (\d+) of (\d+)$")
INSTALLING = re.compile(r"Installing collected packages: (.+)$")
BAR = 24
MB = 10**6


class Progress:
    """Turns the lines that pip prints into progress. Use as a context manager.

    Args:
        site: the environment's `site-packages`, whose records show the progress.
        expected: the approximate number of packages.
        out: the stream for progress.

    Attributes:
        found: the number of packages that pip has chosen.
        fetched: the number that it has begun to fetch.
    """

    def __init__(self, site, expected=0, out=None):
        self._site = site
        self._expected = expected
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._names = ()  # of what is being installed
        self._before = set()
        self._package = ""
        self._bytes = (0, 0)
        self.found = self.fetched = 0

    def __enter__(self):
        if self._terminal:
            self._ticker.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        if self._terminal:
            self._ticker.join()
            self._out.write("\r\x1b[K")
            self._out.flush()

    def line(self, text):
        """Process a line of pip."""
        wheel, moved, installing = (p.match(text) for p in (WHEEL, BYTES, INSTALLING))
        if moved:
            self._bytes = int(moved[1]), int(moved[2])
        elif text.startswith("Collecting "):
            self.found += 1
        elif wheel:
            self.fetched += 1
            self._bytes = (0, 0)
            self._package = f"{wheel[1]} {wheel[2]} ({wheel[3]})"
            self._say(f"  {self._package}")
        elif installing:
            self._before = self._records()
            self._names = installing[1].split(", ")
            self._say(f"installing {len(self._names)} packages")

    def _say(self, text):
        if not self._terminal:
            print(text, file=self._out, flush=True)

    def _tick(self):
        while not self._ended.wait(0.2):
            columns = shutil.get_terminal_size().columns
            self._out.write("\r\x1b[K" + self.status()[: columns - 1])
            self._out.flush()

    def status(self):
        """The present text of the bar."""
        if self._names:
            done = min(len(self._records() - self._before), len(self._names))
            return _bar(done, len(self._names)) + f"installing: {done} of {len(self._names)}"
        if self.fetched:
            done, size = self._bytes
            part = done / size if size else 0
            moved = f", {done / MB:.0f} of {size / MB:.0f} MB" if size > MB else ""
            total = max(self.found, self.fetched, self._expected)
            bar = _bar(self.fetched - 1 + part, total)
            return bar + f"fetching {self.fetched} of {total}: {self._package}{moved}"
        return f"looking up packages: {self.found}" if self.found else "asking the package index"

    def _records(self):
        """The installed packages; pip writes a package's RECORD last."""
        return {path.parent.name for path in self._site.glob("*.dist-info/RECORD")}


def _bar(done, total):
    full = int(BAR * done / total) if total else 0
    return "[" + "#" * full + "-" * (BAR - full) + "] "
