"""Start a function in one process, in several on this machine, or in those of many machines."""

import contextlib
import logging
import multiprocessing.connection
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing
from detectron2.utils import comm

from normdet.engine.signals import handling, show_cursor, start_tracker, stopping_signals
from normdet.errors import NormdetError
from normdet.files.faults import full_disk, tell_of_threads

# Seconds that the other workers get to end by themselves after one failed or was stopped.
GRACE_SECONDS = 20.0
# A collective operation may have to wait for an evaluation. `engine.watch` finds hangs.
_WAIT = timedelta(days=1)
# The longest time between the first and the last worker of a start.
_MEETING = timedelta(minutes=10)


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM stopped the run; `signal` is its number, the message says what was kept."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = int(number)

    def __reduce__(self):
        return type(self), (str(self), self.signal)


class LostWorker(NormdetError):
    """Another worker of the job is gone, or hangs; `kept` says what a new run can resume from."""

    exit_code = 4

    def __init__(self, message: str, kept: str = ""):
        super().__init__(f"{message}; {kept}" if kept else message)
        self.lost, self.kept = message, kept

    def __reduce__(self):
        return type(self), (self.lost, self.kept)


def launch(
    fn: Callable[..., Any],
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple = (),
    *,
    device: str | None = None,
) -> Any:
    """Call `fn(*args)` in every process of a job.

    Under torchrun (`RANK`, `WORLD_SIZE` and `LOCAL_RANK` in the environment) this process is one
    worker of a job that torchrun has already started, and the counts given here do not matter.

    Args:
        fn: a picklable function.
        num_gpus: processes on this machine; with `device="cpu"` they talk over gloo.
        num_machines: machines in the job, each of which calls `launch`.
        machine_rank: this machine's place among them.
        dist_url: where the processes meet, `tcp://HOST:PORT`; "auto" takes a free local port.
        args: arguments of `fn`, picklable.
        device: "cuda" or "cpu"; by default whether this machine has CUDA.

    Returns:
        What `fn` returns if it ran in this process; None if other processes ran it.

    Raises:
        NormdetError: the counts do not fit the machine, or a worker raised one.
        LostWorker: a worker was killed, crashed or hung.
        Interrupted: SIGINT, SIGTERM or SIGHUP stopped the job.
        RuntimeError: a worker failed otherwise; the message holds its traceback.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        rank, world, local_rank = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        _join_group(device, rank, world, local_rank, local_size, "env://")
        return fn(*args)
    world = num_gpus * num_machines
    if num_gpus < 1 or not 0 <= machine_rank < num_machines:
        raise NormdetError(
            f"--num-gpus {num_gpus} --num-machines {num_machines} --machine-rank {machine_rank}: "
            "counts start at 1, and the rank runs from 0 to one less than the machines"
        )
    if world == 1:
        return fn(*args)
    if dist_url == "auto":
        if num_machines > 1:
            raise NormdetError("--dist-url tcp://HOST:PORT is needed with --num-machines above 1")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if device == "cuda" and num_gpus > torch.cuda.device_count():
        raise NormdetError(
            f"--num-gpus {num_gpus}: this machine has {torch.cuda.device_count()} GPU(s)"
        )
    _spawn(num_gpus, (fn, args, device, world, machine_rank, num_gpus, dist_url))
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _host_and_port(url: str) -> tuple[str, int] | None:
    """The address of a job's store, from torchrun's environment or from `tcp://HOST:PORT`."""
    if url == "env://":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    parts = urlparse(url)
    return (parts.hostname, parts.port) if parts.scheme == "tcp" else None


def _join_group(
    device: str, rank: int, world: int, local_rank: int, local_size: int, url: str
) -> None:
    """Join the job's process group and make detectron2's group of this machine inside it."""
    if world == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    global _meeting_place
    _meeting_place = _host_and_port(url)
    backend = "nccl" if device == "cuda" else "gloo"
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    named = {"store": _store_of_attempt()} if of_agent else {"init_method": url}
    dist.init_process_group(backend, **named, world_size=world, rank=rank, timeout=_WAIT)
    comm.create_local_process_group(local_size)
    # Without a first barrier a slow start can run into the timeout of a later collective.
    comm.synchronize()


def _store_of_attempt() -> dist.Store:
    """torchrun's store, under names of this start. It still holds those of a start that failed.

    A worker would otherwise call the others at their old addresses.
    """
    store = dist.TCPStore(*_host_and_port("env://"), is_master=False, timeout=_MEETING)
    return dist.PrefixStore(f"normdet/start_{restarts()}", store)


# A worker sets both: where `engine.watch` finds the job's store, and how a thread other than the
# main one reports what ends the job.
_meeting_place: tuple[str, int] | None = None
_failures: Any = None


def meeting_place() -> tuple[str, int] | None:
    """Host and port of the job's store; None if there is no other worker."""
    return _meeting_place


def elastic_job() -> str:
    """torchrun's id of a job, the same in all workers and after restarts; `""` without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()} {name}" if name else ""


def restarts() -> int:
    """How often torchrun has started this job again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def end_now(error: BaseException) -> NoReturn:
    """End this process with an error from any thread, even if the main thread waits.

    It is reported like an error that the function raised.
    """
    logging.getLogger("normdet").error("%s", error)
    show_cursor()
    number = getattr(error, "signal", None)
    if _failures is not None:
        _failures.put((dist.get_rank(), error))
    else:
        mark = "" if number else "error: "
        os.write(2, f"normdet: {mark}[rank {comm.get_rank()}] {error}\n".encode())
    logging.shutdown()
    os._exit(128 + number if number else getattr(error, "exit_code", 1))


def _spawn(count: int, job: tuple) -> None:
    """Run `count` workers to their end and raise what the first failing one raised."""
    start_tracker()
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with _signals_for_workers() as asked:
        # New processes inherit blocked signals. Otherwise a Ctrl-C during their imports would print
        # a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            workers = torch.multiprocessing.start_processes(
                _worker, args=(*job, failures), nprocs=count, join=False, start_method="spawn"
            ).processes
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        asked.reach(workers)
        first = _wait_for_first_failure(workers)
        for end, seconds in ((None, GRACE_SECONDS), ("terminate", 5.0), ("kill", GRACE_SECONDS)):
            for worker in workers:
                if end and worker.is_alive():
                    getattr(worker, end)()
            for worker in workers:
                worker.join(seconds)
    told = dict(sorted(_drain(failures), key=lambda one: one[0]))
    _, _, _, _, machine_rank, local_size, _ = job
    ended = {machine_rank * local_size + place: code for place, code in first.items()}
    _raise_failure(told, ended, asked.number)


def _wait_for_first_failure(workers: list) -> dict[int, int]:
    """The exit codes, by rank on this machine, of the processes that had failed by then."""
    waiting = {worker.sentinel: worker for worker in workers}
    failed: dict[int, int] = {}
    while waiting and not failed:
        for sentinel in multiprocessing.connection.wait(waiting):
            worker = waiting.pop(sentinel)
            worker.join()
            if worker.exitcode != 0:
                failed[workers.index(worker)] = worker.exitcode
    return failed


def _drain(failures) -> Iterator[tuple[int, BaseException]]:
    while not failures.empty():
        yield failures.get()


def _raise_failure(told: dict[int, BaseException], ended: dict[int, int], asked: int) -> None:
    """Raise the error that explains best why a job has failed, if it has.

    Args:
        told: by rank, the errors that workers reported.
        ended: by rank, the exit codes of those that ended first.
        asked: the signal that this process handed on, or 0.
    """
    stopped = [error for error in told.values() if isinstance(error, KeyboardInterrupt)]
    if asked and (told or ended):
        name = signal.Signals(asked).name
        text = str(stopped[0]) if stopped else f"ended by {name}; the last checkpoint stands"
        raise Interrupted(re.sub(r"\bSIGTERM\b", name, text), asked)
    kept = next((f"; {e.kept}" for e in told.values() if getattr(e, "kept", "")), "")
    # A worker's own error explains more than the errors that it causes in others.
    for error in told.values():
        if not (isinstance(error, LostWorker) or is_of_another_worker(error)):
            raise NormdetError(f"{error}{kept}") if type(error) is NormdetError else error
    for rank, code in ended.items():
        if code < 0:
            why = _SIGNALS_MEAN.get(-code, "")
            raise LostWorker(f"rank {rank} was ended by {signal.Signals(-code).name}{why}{kept}")
    for error in told.values():
        raise error
    for rank, code in ended.items():
        raise RuntimeError(f"worker {rank} ended with exit code {code}")


# The messages of backends whose other worker is gone.
_OF_ANOTHER = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|socket|timed out waiting", re.I
)


def is_of_another_worker(error: BaseException) -> bool:
    """Whether an operation of all workers has failed because one of them is gone."""
    return isinstance(error, RuntimeError) and bool(_OF_ANOTHER.search(str(error)))


_SIGNALS_MEAN = {
    signal.SIGKILL: " (by hand, by a scheduler, or for want of memory)",
    signal.SIGSEGV: " (a crash in compiled code)",
    signal.SIGABRT: " (a check in compiled code, or NCCL's own watch)",
    signal.SIGBUS: " (shared memory may be full: DATALOADER.NUM_WORKERS 0 needs none)",
}


class _Asked:
    """The first signal that came, and the workers to pass it on to."""

    def __init__(self):
        self.number = 0
        self._workers: list = []

    def reach(self, workers: list) -> None:
        self._workers = workers
        if self.number:  # the signal came before the workers started
            self.hand_on(self.number)

    def hand_on(self, number: int, frame: FrameType | None = None) -> None:
        self.number = self.number or number
        for worker in self._workers:
            if worker.is_alive():
                worker.terminate()


@contextlib.contextmanager
def _signals_for_workers() -> Iterator[_Asked]:
    """Pass each request to stop on to the workers as SIGTERM; they stop the run."""
    asked = _Asked()
    with handling(asked.hand_on):
        yield asked


def _stopped_early(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name} before training began", number)


def _worker(local_rank, fn, args, device, world, machine_rank, local_size, url, failures):
    global _failures
    _failures = failures
    tell_of_threads()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher passes it on
    for number in stopping_signals():
        signal.signal(number, _stopped_early)
    rank = machine_rank * local_size + local_rank
    try:
        _join_group(device, rank, world, local_rank, local_size, url)
        fn(*args)
        comm.synchronize()
        dist.destroy_process_group()
    except (NormdetError, KeyboardInterrupt) as error:
        _tell(failures, rank, error)
    except Exception as error:
        if full := full_disk(error):
            _tell(failures, rank, full)
        # It must fit into the pipe's buffer: nobody reads before this process has ended.
        trace = traceback.format_exc()[-20_000:]
        _tell(failures, rank, RuntimeError(f"worker {rank} failed:\n{trace}"))
    end_at_once()


def _tell(failures, rank: int, error: BaseException) -> NoReturn:
    """Send the error to the launcher and end at once, before another signal comes."""
    for number in stopping_signals():
        signal.signal(number, signal.SIG_IGN)
    failures.put((rank, error))
    end_at_once(1)


def end_at_once(code: int = 0) -> NoReturn:
    """End this process without the interpreter's shutdown; by default as a success.

    Everything is written by then. In a normal shutdown, torch's communication threads sometimes
    outlive the interpreter and abort the process ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
