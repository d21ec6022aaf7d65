"""Run a function on several gloo processes and return the result of each."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from normdet.engine.launch import end_at_once


def _work(rank: int, world: int, folder: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        torch.save(function(rank, *args), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    end_at_once()


def run_workers(function: Callable, world: int, *args) -> list:
    """`[function(rank, *args) for rank in range(world)]`, each in a process of one group.

    `function` must be a module's own, so that a fresh process finds it.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (world, folder, function, args), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
