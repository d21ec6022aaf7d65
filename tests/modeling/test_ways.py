"""torch.compile, AMP, channels_last, FSDP2, EMA: each gives what the plain model gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normdet.engine.ema import ModelAverage
from normdet.errors import NormdetError
from normdet.ops import cpp
from normdet.options import parse
from tests.workers import run_workers

from .ways import EXCEPTIONS, NORMS, WAYS, backbone, images, trained


def all_but(way: str) -> list[str]:
    assert way in WAYS
    return [norm for norm in NORMS if (norm, way) not in EXCEPTIONS]


def assert_same(got: dict, want: dict, **tolerance) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("norm", all_but("torch.compile"))
def test_compile_makes_one_graph_of_it(norm):
    model = backbone(norm)
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(trained(model, images(), compiled), trained(plain, images()))
    assert_same(dict(model.named_buffers()), dict(plain.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images()), plain.eval()(images()))


@pytest.mark.slow
@pytest.mark.skipif(not cpp.available(), reason="no C++ compiler")
@pytest.mark.parametrize("norm", ["GN", "FRN+TLU"])
def test_inductor_computes_the_same(norm):
    model = backbone(norm)
    plain = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert_same(trained(model, images(), compiled), trained(plain, images()))


@pytest.mark.slow
@pytest.mark.parametrize("norm", all_but("AMP"))
def test_amp_stays_near_full_precision(norm):
    model = backbone(norm).float()
    plain = copy.deepcopy(model).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = trained(model, images().float())
    want = trained(plain, images())
    assert got.keys() == want.keys()
    assert got["output"].dtype == torch.bfloat16 or norm in ("FrozenBN", "AffineBN")
    assert all(torch.isfinite(value).all() for value in got.values())
    off = (got["output"].double() - want["output"]).square().mean() / want["output"].square().mean()
    assert off.sqrt() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("norm", all_but("channels_last"))
def test_channels_last_stays_and_changes_nothing(norm):
    model = backbone(norm)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    got = trained(last, x)
    assert got["output"].is_contiguous(memory_format=torch.channels_last)
    assert_same(got, trained(model, images()))


def startable(norm: str) -> nn.Module:
    """A backbone that `fully_shard` may have: WN has taken its start from a first forward."""
    model = backbone(norm)
    if (norm, "FSDP2") in EXCEPTIONS:
        with torch.no_grad():
            model(images())
    return model


def _shard(rank: int, norms: tuple[str, ...]) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, found = init_device_mesh("cpu", (2,)), {}
    for norm in norms:
        model = startable(norm)
        for block in model.res2:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        result = trained(model, images())
        with torch.no_grad():
            model.eval()
            result["evaluated"] = model(images())["res2"]
            for parameter in model.parameters():
                parameter.mul_(0.5)
            result["changed"] = model(images())["res2"]
        found[norm] = result
    return found


@pytest.mark.slow
def test_fsdp2_computes_what_one_process_does():
    """Both workers see the same images, so that the mean of gradients is the gradient."""
    for found in run_workers(_shard, 2, NORMS):
        for norm in NORMS:
            model = startable(norm)
            # The batch of both workers, whose variance has no other bias than theirs.
            seen = images().repeat(2, 1, 1, 1) if norm == "SyncBN" else images()
            want = trained(model, seen)
            want["output"] = want["output"][:2]
            with torch.no_grad():
                model.eval()
                want["evaluated"] = model(images())["res2"]
                for parameter in model.parameters():
                    parameter.mul_(0.5)
                want["changed"] = model(images())["res2"]
            assert_same(found[norm], want)


def _start_sharded(rank: int) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = backbone("MeanOnlyBN+WN")
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(NormdetError) as refused:
        model(images())
    return str(refused.value)


@pytest.mark.slow
def test_a_start_that_fsdp2_would_lose_is_refused():
    for said in run_workers(_start_sharded, 2):
        assert "run one forward in training mode before fully_shard" in said


@pytest.mark.slow
@pytest.mark.parametrize("norm", all_but("EMA"))
def test_an_average_of_one_step_is_the_model(norm):
    model = backbone(norm)
    average = ModelAverage(model, 0.9)
    average.before_train()
    trained(model, images())
    average.after_step()
    assert_same(average.module.state_dict(), model.state_dict())
    with torch.no_grad():
        want, got = model.eval()(images()), average.module.eval()(images())
    assert torch.equal(got["res2"], want["res2"])


@pytest.mark.parametrize(("norm", "way"), EXCEPTIONS)
def test_exceptions_name_rows_and_columns(norm, way):
    assert norm in NORMS and way in WAYS


@pytest.mark.slow
@pytest.mark.skipif(not cpp.available(), reason="no C++ compiler")
def test_compiled_evaluation_of_flat_maps_is_that_of_eager():
    """pytorch#181696 and #183120: GN after BN, on maps that are all but flat.

    Where a compiler replaces GN by sums of its own, their rounding is all that is left of such
    maps, and the logarithm shows it. Ours stays one operator.
    """
    bn = nn.BatchNorm2d(10).eval()
    gn = parse("GN", {"GN": {"NUM_GROUPS": 10}}).build_norm(10).eval()

    def chain(x):
        return torch.log(gn(F.elu(bn(x))).clamp(min=1e-6))

    torch._dynamo.reset()
    with torch.no_grad():
        for x in (torch.ones(6, 10, 12, 12), torch.full((6, 10, 7, 5), 0.3)):
            assert torch.equal(torch.compile(chain)(x), chain(x))
