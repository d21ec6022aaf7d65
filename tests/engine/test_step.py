"""One optimizer step: accumulation equals the large batch, precision, losses that blow up."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from normdet import parse
from normdet.engine.step import NonFiniteLoss, TrainStep, backward


class Toy(nn.Module):
    """Two losses that are means over images, behind a norm that sees one image at a time."""

    def __init__(self, norm="GN", dtype=torch.float64):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, dtype=dtype)
        self.norm = parse(norm).build_norm(32, activate=True).to(dtype)
        self.head = nn.Conv2d(32, 1, 1, dtype=dtype)

    def forward(self, batch):
        out = self.head(self.norm(self.conv(torch.stack(batch))))
        return {"square": (out**2).mean(), "linear": out.mean()}


def gradients(model, batch, **kwargs):
    model.zero_grad()
    losses = backward(model, batch, **kwargs)
    return losses, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("norm", ["GN", "FRN+TLU", "GN+WS"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_large_batch(norm, parts):
    torch.manual_seed(0)
    model = Toy(norm)
    batch = list(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    losses, whole = gradients(model, batch)
    summed_losses, summed = gradients(model, batch, micro_batches=parts)
    for name, value in losses.items():
        torch.testing.assert_close(summed_losses[name], value)
    for a, b in zip(summed, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert a.abs().max() > 0


def test_batch_statistics_are_those_of_a_part():
    torch.manual_seed(0)
    model = Toy("BN")
    batch = list(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    _, whole = gradients(model, batch)
    _, summed = gradients(model, batch, micro_batches=2)
    assert max((a - b).abs().max() for a, b in zip(summed, whole, strict=True)) > 1e-6


@pytest.mark.parametrize("norm", ["GN", "FRN+TLU"])
def test_a_region_proposal_network_accumulates_exactly(norm, tiny_cfg, monkeypatch):
    # Proposals have no part in the losses, and their suppression knows no float64.
    monkeypatch.setattr(RPN, "predict_proposals", lambda *_: [])
    # The sample holds every anchor, so that draws make no difference.
    opts = ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "99999"]
    model = build_model(tiny_cfg(*opts, norm=norm)).double().train()
    torch.manual_seed(0)
    batch = []
    for corner in (5.0, 20.0):
        truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[corner, 8, corner + 24, 40]])))
        truth.gt_classes = torch.tensor([0])
        batch.append({"image": torch.randint(0, 255, (3, 64, 64)), "instances": truth})
    with EventStorage():
        losses, whole = gradients(model, batch)
        summed_losses, summed = gradients(model, batch, micro_batches=2)
    assert losses["loss_rpn_loc"] > 0
    for name, value in losses.items():
        torch.testing.assert_close(summed_losses[name], value)
    for a, b in zip(summed, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8 * float(b.abs().max()))


def run(model, batches, iteration=0, **kwargs):
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), 0.1), **kwargs)
    with EventStorage() as storage:
        step.iter = iteration
        step.run_step()
        return step, storage


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    seen = []

    class Spy(Toy):
        def forward(self, batch):
            seen.append(self.conv(torch.stack(batch)).dtype)
            return super().forward(batch)

    torch.manual_seed(0)
    model = Spy(dtype=torch.float32)
    before = model.conv.weight.detach().clone()
    run(model, [[torch.randn(3, 8, 8)] * 2], amp_dtype=torch.bfloat16)
    assert seen == [torch.bfloat16]
    assert model.conv.weight.dtype == torch.float32
    assert not torch.equal(model.conv.weight, before)


def test_float16_skips_a_step_that_overflows_and_undoes_its_scale():
    torch.manual_seed(0)
    batch = [torch.randn(3, 8, 8)] * 2
    plain = Toy(dtype=torch.float32)
    scaled = copy.deepcopy(plain)
    step = TrainStep(
        scaled, [batch] * 2, torch.optim.SGD(scaled.parameters(), 0.1), amp_dtype=torch.float16
    )
    before = step.state_dict()["grad_scaler"]
    with EventStorage():
        step.run_step()
        assert torch.equal(scaled.conv.weight, plain.conv.weight)
        assert step.scaler.get_scale() == before["scale"] / 2
        step.load_state_dict({**step.state_dict(), "grad_scaler": {**before, "scale": 256.0}})
        step.run_step()
    run(plain, [batch])
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_losses_are_recorded_and_a_checkpoint_holds_the_optimizer():
    step, storage = run(Toy(), [list(torch.randn(2, 3, 8, 8, dtype=torch.float64))])
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["total_loss"] == pytest.approx(latest["square"] + latest["linear"])
    assert latest["data_time"] >= 0
    assert set(step.state_dict()) == {"iteration", "optimizer"}


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    model = Toy()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"iteration 7: .*\(square = nan, linear = nan\)"):
        run(model, [[torch.full((3, 8, 8), float("nan"), dtype=torch.float64)]], iteration=7)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
