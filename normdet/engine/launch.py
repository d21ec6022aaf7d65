"""Start a function in one process, in several of this machine, or in those of many machines."""

import contextlib
import logging
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from detectron2.utils import comm

from normdet.errors import NormdetError

# How long the other workers may take to end by themselves after one failed or was stopped.
GRACE_SECONDS = 20.0


class Interrupted(KeyboardInterrupt):
    """A run that SIGINT or SIGTERM stopped; `signal` says which, the message what was kept."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.signal = int(number)

    def __reduce__(self):
        return type(self), (str(self), self.signal)


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
        Interrupted: SIGINT or SIGTERM stopped the job.
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


def _join_group(
    device: str, rank: int, world: int, local_rank: int, local_size: int, url: str
) -> None:
    """Join the job's process group and make detectron2's group of this machine inside it."""
    if world == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=url, world_size=world, rank=rank, timeout=timedelta(minutes=30)
    )
    comm.create_local_process_group(local_size)
    # Without a first barrier a slow starter can run into the timeout of a later collective.
    comm.synchronize()


def _spawn(count: int, job: tuple) -> None:
    """Run `count` workers to their end and raise what the first failing one raised."""
    failures = torch.multiprocessing.get_context("spawn").SimpleQueue()
    workers = torch.multiprocessing.start_processes(
        _worker, args=(*job, failures), nprocs=count, join=False, start_method="spawn"
    ).processes
    with _signals_reach(workers):
        waiting = {worker.sentinel: worker for worker in workers}
        failed = False
        while waiting and not failed:
            for sentinel in multiprocessing.connection.wait(waiting):
                worker = waiting.pop(sentinel)
                worker.join()
                failed |= worker.exitcode != 0
        for end in (None, "terminate", "kill"):
            for worker in waiting.values():
                if end and worker.is_alive():
                    getattr(worker, end)()
            for worker in waiting.values():
                worker.join(GRACE_SECONDS)
    if not failures.empty():
        raise failures.get()
    for rank, worker in enumerate(workers):
        if worker.exitcode != 0:
            raise RuntimeError(f"worker {rank} ended with exit code {worker.exitcode}")


@contextlib.contextmanager
def _signals_reach(workers):
    """Leave stopping to the workers: Ctrl-C reaches them by itself, SIGTERM is handed on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hand_on(number, frame):
        for worker in workers:
            if worker.is_alive():
                worker.terminate()

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _worker(local_rank, fn, args, device, world, machine_rank, local_size, url, failures):
    rank = machine_rank * local_size + local_rank
    try:
        _join_group(device, rank, world, local_rank, local_size, url)
        fn(*args)
        comm.synchronize()
        dist.destroy_process_group()
    except (NormdetError, KeyboardInterrupt) as error:
        failures.put(error)
        sys.exit(1)
    except Exception:
        # Short enough for the pipe's buffer: nobody reads before this process has ended.
        failures.put(RuntimeError(f"worker {rank} failed:\n{traceback.format_exc()[-20_000:]}"))
        sys.exit(1)
    end_at_once()


def end_at_once() -> None:
    """End this process as a success, without the interpreter's own ending.

    All is done and written by then; now and then torch's communication threads outlive the
    interpreter and abort the process ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
