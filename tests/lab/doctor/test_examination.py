"""Known answers: statistics that are a known number of sigmas away, and dead channels."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from normdet import layers
from normdet.errors import NormdetError
from normdet.lab.doctor.examination import examine, layers_to_watch, stage_of, untrained_layers
from normdet.lab.doctor.traces import trace
from tests.lab.doctor.made import all_values, images


class Model(nn.Module):
    """One norm, which sees the image itself, under a detector's names."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.backbone = nn.ModuleDict({"res4": norm})

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone["res4"](x)


def fitted(norm: nn.Module, batch: list[Tensor]) -> Model:
    """A norm that has stored exactly the statistics of the images."""
    values = all_values(batch)
    norm.running_mean.copy_(values.mean(1))
    norm.running_var.copy_(values.var(1, correction=0))
    return Model(norm)


@pytest.mark.parametrize("kind", [layers.BatchNorm2d, layers.FrozenBatchNorm2d])
def test_images_that_the_statistics_come_from_are_at_no_distance(kind):
    batch = images()
    found = examine(fitted(kind(3, activation="ReLU"), batch), batch)
    (layer,), (stage,) = found.layers, found.stages
    assert stage.name == "res4" and layer.name == "backbone.res4" and found.images == 8
    for row in (layer, stage):
        assert row.distance == pytest.approx(0, abs=1e-5)
        assert row.shift == pytest.approx(0, abs=1e-5) and row.beyond == 0
        assert row.variance_ratio == pytest.approx(1, abs=1e-5)
        assert row.level == "fits"


@pytest.mark.parametrize("sigmas", [0.3, 3.1])
def test_a_known_shift_in_sigmas_comes_back(sigmas):
    batch = images()
    model = fitted(layers.BatchNorm2d(3), batch)
    norm = model.backbone["res4"]
    sigma = (norm.running_var + norm.eps).sqrt()
    moved = [x + sigmas * sigma.view(1, -1, 1, 1) for x in batch]
    (row,) = examine(model, moved).stages
    assert row.distance == pytest.approx(sigmas, rel=1e-4)
    assert row.shift == pytest.approx(sigmas, rel=1e-4)
    assert row.variance_ratio == pytest.approx(1, rel=1e-4)
    assert row.level == ("off" if sigmas > 1 else "somewhat off")
    assert row.beyond == (sigmas > 1)


def test_a_known_spread_and_a_constant_channel_come_back():
    batch = images()
    model = fitted(layers.BatchNorm2d(3), batch)
    mean = model.backbone["res4"].running_mean.view(1, -1, 1, 1)
    (row,) = examine(model, [(x - mean) * 3 + mean for x in batch]).stages
    assert row.distance == pytest.approx(2, rel=1e-4)
    assert row.variance_ratio == pytest.approx(9, rel=1e-4)
    (row,) = examine(model, [x * 0 + mean for x in batch]).stages
    assert row.distance == pytest.approx(1, abs=0.01) and math.isfinite(row.distance)


@pytest.mark.parametrize("kind", [layers.BatchNorm2d, layers.FrozenBatchNorm2d])
@pytest.mark.parametrize("activation", ["ReLU", "TLU"])
def test_dead_channels_are_counted(kind, activation):
    batch = images(channels=4)
    model = fitted(kind(4, activation=activation), batch)
    norm = model.backbone["res4"]
    with torch.no_grad():
        norm.bias[1] = -100
        if norm.tau is not None:
            norm.tau[1], norm.tau[2] = -50, -100  # channel 2 is never held
    (row,) = examine(model, batch).layers
    assert row.dead == 0.25 and row.saturated
    assert "res4 (25% of its channels dead" in " ".join(examine(model, batch).notes)
    outputs = torch.cat([norm.eval()(x)[0].flatten(1) for x in batch], 1)
    threshold = torch.zeros(4, 1) if norm.tau is None else norm.tau[:, None]
    held = (outputs == threshold).double().mean(1)
    assert row.clamped == pytest.approx(float(held.mean()))
    assert held[1] == 1 and (held[2] == 0) == (activation == "TLU")


def test_noise_is_the_distance_of_a_batch_from_all_images():
    batch = [x[..., :6, :] for x in images(16)]
    row = examine(fitted(layers.BatchNorm2d(3), batch), batch).stages[0]
    assert list(row.noise) == [1, 2, 4]  # four batches of a size, or it is not measured
    everything = all_values(batch)
    mean, sigma = everything.mean(1), everything.std(1, correction=0)
    distances = []
    for first, second in zip(batch[::2], batch[1::2], strict=True):
        pair = all_values([first, second])
        shift = (pair.mean(1) - mean) / sigma
        distances.append(torch.hypot(shift, pair.std(1, correction=0) / sigma - 1))
    assert row.noise[2] == pytest.approx(float(torch.stack(distances).mean(0).median()), rel=1e-3)
    alike = [batch[0]] * 8
    assert examine(fitted(layers.BatchNorm2d(3), alike), alike).stages[0].noise[2] < 1e-5


def test_a_head_shared_over_levels_is_pooled_within_the_image():
    norm = layers.BatchNorm2d(3)
    small, large = images(2)
    seen = trace(norm, {"norm": norm}, [(small, large)], lambda pair: [norm(x) for x in pair])
    (moments,) = seen["norm"].images
    torch.testing.assert_close(
        moments.mean, all_values([small, large]).mean(1), rtol=1e-5, atol=1e-6
    )


def test_reference_images_stand_in_for_what_is_stored():
    batch = images()
    model = fitted(layers.FrozenBatchNorm2d(3), [x + 100 for x in batch])
    found = examine(model, batch, reference=batch)
    assert found.stages[0].distance == pytest.approx(0, abs=1e-6)
    assert "reference" in found.compared_with


def test_nothing_of_the_model_changes():
    batch = images()
    model = fitted(layers.BatchNorm2d(3), batch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    examine(model, batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    norm = model.backbone["res4"]
    assert not norm._forward_hooks and not norm._forward_pre_hooks


def test_hooks_leave_where_the_forward_pass_fails():
    model = fitted(layers.BatchNorm2d(3), images())
    with pytest.raises(NormdetError, match="takes"):
        examine(model, [torch.zeros(1, 5, 4, 4)])
    assert not model.backbone["res4"]._forward_pre_hooks


@pytest.mark.parametrize("kind", [layers.BatchNorm2d, layers.FrozenBatchNorm2d])
def test_a_model_that_was_never_trained_is_refused(kind):
    with pytest.raises(NormdetError, match="never trained"):
        examine(Model(kind(3)), images())


@pytest.mark.parametrize(
    "norm", [layers.GroupNorm(3, 3), layers.MeanOnlyBatchNorm(3), nn.Identity()]
)
def test_a_model_without_stored_statistics_is_refused(norm):
    with pytest.raises(NormdetError, match="nothing to examine"):
        examine(Model(norm), images())


def test_no_image_is_refused():
    with pytest.raises(NormdetError, match="no image"):
        examine(fitted(layers.BatchNorm2d(3), images()), [])


def test_folded_statistics_leave_noise_and_dead_channels():
    norm = layers.FrozenBatchNorm2d(3, activation="ReLU")
    norm.weight.copy_(torch.tensor([0.5, 2, 3]))
    norm.bias.copy_(torch.tensor([0.1, -1000, 1]))
    found = examine(Model(norm), images())
    (row,) = found.stages
    assert untrained_layers({"n": norm}) == ["n"]
    assert row.distance is None and row.level == "-" and found.compared_with == ""
    assert row.dead == pytest.approx(1 / 3) and row.noise[2] > 0
    assert "folded" in found.notes[0]
    assert "--reference" in found.notes[0]
    assert examine(Model(norm), images(), reference=images()).stages[0].distance < 1e-5


def test_few_images_are_told_apart_from_enough():
    model = fitted(layers.BatchNorm2d(3), images())
    assert "too few" in examine(model, images(1)).notes[0]
    alike = images()[:1] * 64
    assert examine(fitted(layers.BatchNorm2d(3), alike), alike).notes == []


def test_results_are_plain_values():
    plain = examine(fitted(layers.BatchNorm2d(3), images()), images()).to_dict()
    assert json.loads(json.dumps(plain))["stages"][0]["level"] == "fits"


def test_stages_come_in_the_order_data_flows():
    model = Model(layers.BatchNorm2d(3))
    model.head = layers.BatchNorm2d(3)
    model.backbone = nn.ModuleDict({"fpn_output2": layers.BatchNorm2d(3), **model.backbone})
    assert [stage_of(name) for name in layers_to_watch(model)] == ["res4", "FPN", "RetinaNet head"]


def test_stages_have_the_names_people_use():
    assert stage_of("backbone.bottom_up.res4.0.conv1.norm") == "res4"
    assert stage_of("roi_heads.box_head.conv1.norm") == "box head"


def test_layers_without_stored_statistics_have_no_distance():
    class Two(Model):
        def __init__(self, norm, other):
            super().__init__(norm)
            self.backbone["res5"] = other

        def forward(self, x):
            return self.backbone["res5"](super().forward(x))

    batch = images()
    trained = fitted(layers.FrozenBatchNorm2d(3), batch).backbone["res4"]
    found = examine(Two(trained, layers.FrozenBatchNorm2d(3)), batch)
    assert [row.level for row in found.stages] == ["fits", "-"]
    assert "1 of 2 layers have statistics that were never trained" in found.notes[0]
    folded = layers.FrozenBatchNorm2d(3)
    folded.weight.fill_(2)
    found = examine(Two(trained, folded), batch)
    assert "in 1 of 2 layers the statistics are folded" in found.notes[0]
