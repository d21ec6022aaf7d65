"""One process, several, and several that fail or are stopped."""

import json
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normdet.engine import Interrupted, launch
from normdet.engine.step import backward
from normdet.errors import NormdetError
from normdet.layers import FilterResponseNorm2d, GroupNorm


def describe(folder):
    gathered = comm.all_gather(comm.get_rank())
    place = [dist.get_backend(), comm.get_local_rank(), comm.get_world_size(), gathered]
    (folder / f"{comm.get_rank()}.json").write_text(json.dumps(place))


def refuse(_):
    raise NormdetError("MODEL.KEY is wrong")


def fail(_):
    if comm.get_rank() == 1:
        raise KeyError("a bug")
    comm.synchronize()


def stop_oneself(folder):
    try:
        comm.synchronize()  # the signal may come while a worker still leaves this
        if comm.get_rank() == 0:
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        (folder / f"{comm.get_rank()}.ended").touch()


def stoppable(folder):
    def note(number, frame):
        raise Interrupted("saved", number)

    signal.signal(signal.SIGTERM, note)
    stop_oneself(folder)


def test_one_process_returns_what_the_function_returns():
    assert launch(max, 1, args=(3, 7)) == 7


@pytest.mark.slow
def fill(folder):
    """The disk of one worker is full where torch writes."""
    if comm.get_rank() == 1:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "kind", "text"),
    [
        (refuse, NormdetError, "^MODEL.KEY is wrong$"),
        (fail, RuntimeError, "worker 1.*a bug"),
        (fill, NormdetError, "^the disk is full or fails .*--resume goes on from it$"),
    ],
)
def test_the_first_failure_of_a_worker_is_raised_here(fn, kind, text, tmp_path):
    with pytest.raises(kind, match=f"(?s){text}"):
        launch(fn, 2, args=(tmp_path,), device="cpu")


@pytest.mark.slow
def test_sigterm_reaches_every_worker(tmp_path):
    start = time.monotonic()
    with pytest.raises(Interrupted, match="saved") as stopped:
        launch(stoppable, 2, args=(tmp_path,), device="cpu")
    assert stopped.value.signal == signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == {"0.ended", "1.ended"}
    assert time.monotonic() - start < 50
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"num_gpus": 0}, "--num-gpus 0"),
        ({"num_gpus": 1, "num_machines": 2, "machine_rank": 2}, "--machine-rank 2"),
        ({"num_gpus": 1, "num_machines": 2}, "--dist-url tcp://"),
    ],
)
def test_impossible_counts_of_processes_are_refused(counts, text):
    with pytest.raises(NormdetError, match=text):
        launch(print, **counts)


def toy(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 1, 1)).double()


NORMS = {
    "GN": lambda: GroupNorm(4, 8, activation="ReLU"),
    "FRN+TLU": lambda: FilterResponseNorm2d(8, activation="TLU"),
}


class Losses(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return {"loss": (self.net(torch.stack(batch)) ** 2).mean()}


def images():
    return list(torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1)).double())


def accumulate(folder):
    describe(folder)
    exchanges = []

    def exchange(_, bucket):
        exchanges.append(bucket)
        summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return summed.then(lambda done: done.value()[0] / dist.get_world_size())

    for name, norm in NORMS.items():
        model = DistributedDataParallel(Losses(toy(norm())))
        model.register_comm_hook(None, exchange)
        backward(model, images()[comm.get_rank() :: 2], micro_batches=2)
        torch.save([p.grad for p in model.parameters()], folder / f"{name}{comm.get_rank()}")
        assert len(exchanges) == 1  # one exchange of the one bucket for both parts
        exchanges.clear()


@pytest.mark.slow
def test_two_processes_accumulate_the_gradients_of_the_large_batch(tmp_path):
    assert launch(accumulate, 2, args=(tmp_path,), device="cpu") is None
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [["gloo", 0, 2, [0, 1]], ["gloo", 1, 2, [0, 1]]]
    for name, norm in NORMS.items():
        model = Losses(toy(norm()))
        backward(model, images())
        for rank in (0, 1):
            shared = torch.load(tmp_path / f"{name}{rank}")
            for ours, whole in zip(shared, model.parameters(), strict=True):
                torch.testing.assert_close(ours, whole.grad, rtol=1e-10, atol=1e-12)
