"""A fake training run for tests of the schedulers; its second argument says what it does."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(folder: Path, what: str) -> int:
    with (folder / "attempts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "diverge":
        print("normdet: error: iteration 7: the loss is not finite", file=sys.stderr)
        return 3
    if what == "crash":
        print("Traceback\nValueError: a bug", file=sys.stderr)
        return 1
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("hold"):
        # Runs until the test says so, or saves and ends when it is asked to.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        held = bytearray(int(what.removeprefix("hold") or 0) << 20)
        (folder / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.0, "time": 0.5}\n')
        while not (folder / "go").exists():
            time.sleep(0.02)
        del held
    if what == "nothing":
        return 0
    (folder / "results.json").write_text(json.dumps({"bbox": {"AP": 40.0, "AP50": 60.0}}))
    (folder / "model_final.pth").write_bytes(b"weights")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
