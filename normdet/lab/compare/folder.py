"""The output folder of a comparison: its inputs, and a lock for one command at a time."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from normdet.engine.summary import flat
from normdet.errors import NormdetError
from normdet.files.atomic import atomic_file
from normdet.files.lock import hold
from normdet.files.words import first_of
from normdet.lab.compare.plan import NOT_HASHED, Plan


@contextlib.contextmanager
def taken(out: Path) -> Iterator[None]:
    """Lock the folder, which is made if missing.

    Raises:
        NormdetError: another command is using it, or it cannot be made.
    """
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise NormdetError(f"--out {out} cannot be used: {error.strerror}") from error
    try:
        if not hold(lock):
            raise NormdetError(f"--out {out}: another `normdet compare` is at work there")
        yield
    finally:
        os.close(lock)


def snapshot(out: Path, plan: Plan) -> Plan:
    """Copy the inputs of the comparison into the folder, and return the plan on the copy.

    The cells run from the copy, so an edit of the config while they run changes nothing.

    Raises:
        NormdetError: the folder holds runs made from another config, naming the keys.
    """
    content = {key: value for key, value in flat(plan.base) if key not in NOT_HASHED}
    content["--val"], content["--norm-parts"] = plan.val, ",".join(plan.norm_parts or ())
    content = json.loads(json.dumps(content, default=str))
    file = out / "plan.json"
    if file.exists():
        before = json.loads(file.read_text())
        # A comparison without --val may name one later; that only adds runs.
        before["--val"] = before.get("--val") or plan.val
        keys = sorted(k for k in before.keys() | content.keys() if before.get(k) != content.get(k))
        if keys:
            changes = [f"{k} was {before.get(k)!r} and is {content.get(k)!r}" for k in keys]
            raise NormdetError(
                f"--out {out} holds runs of another config ({first_of(changes)}): give another "
                "--out; only norms, batch sizes, seeds and rates can be added to a comparison"
            )
    copy = out / "config.yaml"
    _write(copy, plan.base.dump())
    _write(file, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return replace(plan, config_file=str(copy))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
