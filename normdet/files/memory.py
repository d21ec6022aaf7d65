"""How much memory a run holds and how much there is, as Linux tells it."""

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def available_memory() -> float | None:
    """The MB that can still be taken, of the machine or of the group that limits us."""
    meminfo = _PROC / "meminfo"
    if not meminfo.is_file():
        return None
    free = _kilobytes(meminfo)["MemAvailable"] / 2**10
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, (int(limit) - used) / 2**20)


def held_memory(leader: int) -> tuple[float, float]:
    """The MB that a process and those it started hold, and the most that can be said they held.

    What several of them share is counted once, by each one's proportional share; the most is the
    leader's own high-water mark with what the others hold now. A leader is the first of its process
    group. Both are 0 where it cannot be told.
    """
    try:
        own = _kilobytes(_PROC / str(leader) / "status")
        now, most = own["VmRSS"], own["VmHWM"]
    except (OSError, KeyError):
        return 0.0, 0.0
    others = sum(map(_share, _started_by(leader)))
    return (now + others) / 2**10, (most + others) / 2**10


def _started_by(leader: int) -> Iterator[int]:
    """The other processes of its group: the workers that load data."""
    for folder in _PROC.glob("[0-9]*"):
        try:
            # The name stands in brackets and may hold anything, brackets too.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == leader != int(folder.name):
            yield int(folder.name)


def _share(pid: int) -> int:
    try:
        return _kilobytes(_PROC / str(pid) / "smaps_rollup")["Pss"]
    except (OSError, KeyError):
        return 0


def _kilobytes(file: Path) -> dict[str, int]:
    """The fields of a file of /proc that are in kB."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[2:] == ["kB"]}
