"""Workers that are killed, stopped or asked to stop leave a sentence, a checkpoint, no process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normdet.weights import load_file

REPO = Path(__file__).resolve().parents[2]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc"),
]


class Job:
    """A training of two workers, started as a user starts it."""

    def __init__(self, config, folder, *opts, program=("-m", "normdet", "train"), flags=()):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, *program, "--config-file", str(config), *flags,
             "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", "400", "DATASETS.TEST", "()", *opts],
            cwd=REPO, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
            # As from a terminal, though a suite under nohup ignores SIGHUP.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )  # fmt: skip

    @property
    def log(self):
        file = self.folder / "log.txt"
        return file.read_text() if file.exists() else ""

    def until_it_trains(self):
        self.wait_for(lambda: "training from iteration" in self.log)
        time.sleep(2)
        return self

    def until_it_has_saved(self):
        self.wait_for((self.folder / "last_checkpoint").exists)
        return self

    def wait_for(self, happened):
        deadline = time.monotonic() + 300
        while not happened():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def workers(self):
        """The training processes by rank."""
        children = _children(self.process.pid)
        found = [pid for pid in children if "resource_tracker" not in _command(pid)]
        return sorted(found)

    def end(self, timeout=90):
        """Exit code and messages, once all processes of the session are gone."""
        out, err = self.process.communicate(timeout=timeout)
        deadline = time.monotonic() + 15
        while left := _session(self.process.pid):
            assert time.monotonic() < deadline, f"left behind: {[_command(p) for p in left]}"
            time.sleep(0.2)
        return self.process.returncode, out, err

    def saved(self):
        name = (self.folder / "last_checkpoint").read_text()
        return load_file(self.folder / name)["iteration"]


def _stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _pids():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _matching(place, value):
    found = []
    for pid in _pids():
        try:
            stat = _stat(pid)
        except OSError:
            continue
        if stat[0] not in "ZX" and int(stat[place]) == value:
            found.append(pid)
    return found


def _children(pid):
    return _matching(1, pid)


def _session(leader):
    return _matching(3, leader)


def _command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture
def start(tiny_config, tmp_path):
    jobs = []

    def run(*opts, **how):
        how.setdefault("flags", ("--num-gpus", "2") if "program" not in how else ())
        jobs.append(Job(tiny_config, tmp_path / "run", *opts, **how))
        return jobs[-1]

    yield run
    for job in jobs:  # a failed test leaves no process behind
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.communicate()


def test_a_killed_worker_is_named_and_the_other_saves(start):
    job = start().until_it_trains()
    os.kill(job.workers()[1], signal.SIGKILL)
    code, _, err = job.end()
    assert code == 4 and "Traceback" not in err, err
    assert re.search(r"error: rank 1 was ended by SIGKILL .*memory.*; \S*model_\d+\.pth is", err)
    assert "--resume goes on from it" in err and job.saved() > 0


def test_a_stopped_worker_is_found_and_named(start):
    job = start("SOLVER.HANG_SECONDS", "6").until_it_trains()
    os.kill(job.workers()[1], signal.SIGSTOP)
    begun = time.monotonic()
    code, _, err = job.end()
    assert code == 4 and "Traceback" not in err, err
    told = (
        r"rank 1 \(process \d+ of .*has not answered for \d+ seconds, its process is stopped "
        r"\(SIGSTOP\); it was at iteration \d+; \S*model_\d+\.pth is saved"
    )
    assert re.search(told, err)
    assert job.saved() > 0 and time.monotonic() - begun < 60


def test_a_stopped_first_worker_is_named(start):
    job = start("SOLVER.HANG_SECONDS", "6").until_it_trains()
    os.kill(job.workers()[0], signal.SIGSTOP)
    code, _, err = job.end()
    assert code == 4 and re.search(r"rank 0 \(process .*stopped \(SIGSTOP\)", err), err
    assert job.saved() > 0


@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [
        ("launcher", signal.SIGHUP, 129),
        ("terminal", signal.SIGHUP, 129),
        ("launcher", signal.SIGTERM, 143),
        ("rank 1", signal.SIGTERM, 143),
        ("terminal", signal.SIGINT, 130),
    ],
)
def test_every_request_to_stop_saves_and_ends_with_a_sentence(start, whom, number, code):
    job = start().until_it_trains()
    if whom == "terminal":  # to all of them, and twice as people do
        os.killpg(job.process.pid, number)
        time.sleep(0.2)
        os.killpg(job.process.pid, number)
    else:
        os.kill(job.process.pid if whom == "launcher" else job.workers()[1], number)
    ended, _, err = job.end()
    assert ended == code and "Traceback" not in err, err
    name = signal.Signals(number).name
    assert re.search(rf"normdet: stopped by {name} after \d+ of 400 .*--resume goes on", err)
    assert job.saved() > 0


def test_a_killed_loader_is_named_and_the_run_saves(start):
    job = start("DATALOADER.NUM_WORKERS", "1", flags=()).until_it_trains()
    for pid in job.workers():
        os.kill(pid, signal.SIGKILL)
    code, _, err = job.end()
    assert code == 2 and "Traceback" not in err, err
    assert re.search(r"a process that loads images was ended .*model_\d+\.pth is saved", err)
    assert job.saved() > 0


def test_workers_end_with_a_checkpoint_where_their_launcher_is_killed(start):
    job = start().until_it_trains()
    os.kill(job.process.pid, signal.SIGKILL)
    job.end()
    assert job.saved() > 0


def test_an_elastic_job_goes_on_by_itself(start):
    program = (*TORCHRUN, "--max-restarts", "1", "tools/train_net.py")
    job = start("SOLVER.MAX_ITER", "80", "SOLVER.CHECKPOINT_PERIOD", "4", program=program)
    os.kill(job.until_it_has_saved().workers()[1], signal.SIGKILL)
    code, _, err = job.end(timeout=500)
    assert code == 0, err
    starts = [int(at) for at in re.findall(r"training from iteration (\d+) to 80", job.log)]
    # It resumes from the last checkpoint, or from a later one of the other worker.
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 4
    assert job.saved() == 79
    lines = (job.folder / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 79


def test_an_elastic_restart_takes_no_folder_of_another_run(start, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"iteration": 1}\n')
    job = start(program=(*TORCHRUN, "--max-restarts", "1", "tools/train_net.py"))
    code, _, err = job.end(timeout=500)
    assert code != 0 and "already holds a run" in err
    assert (folder / "metrics.json").read_text() == '{"iteration": 1}\n'
