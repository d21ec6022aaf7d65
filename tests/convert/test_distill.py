"""Distillation: nearer to the original, the same each time, and resumed where it stopped."""

import pytest
import torch

from normdet.convert import Settings, convert
from normdet.convert.distill import Schedule
from normdet.errors import NormdetError

SIZE = 96


@pytest.mark.slow
@pytest.mark.parametrize("all_weights", [False, True])
def test_distillation_nears_the_original(all_weights, small_cfg, pictures, tmp_path):
    schedule = Schedule(40, 3e-4, all_weights)
    settings = Settings("GN", "distilled", size=SIZE, batch=4, schedule=schedule)
    done = convert(small_cfg(), settings, pictures, state_file=tmp_path / "state.pth")
    assert sum(done.losses[-10:]) < 0.9 * sum(done.losses[:10])
    moved = {
        name for name, value in done.converted.named_parameters() if value.requires_grad
    }
    assert any(name.endswith("conv1.weight") for name in moved) == all_weights
    assert "backbone.bottom_up.res2.0.conv1.norm.weight" in moved
    assert not (tmp_path / "state.pth").exists()


@pytest.mark.slow
def test_distillation_repeats_and_resumes(small_cfg, pictures, tmp_path, monkeypatch):
    from normdet.convert import distill

    monkeypatch.setattr(distill, "SAVE_EVERY", 2)
    settings = Settings("GN", "distilled", size=SIZE, batch=2, schedule=Schedule(6, 1e-4, True))
    whole = convert(small_cfg(), settings, pictures, state_file=tmp_path / "a.pth")

    class Killed(Exception):
        pass

    def dying(model, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == 4:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(distill, "after_step", dying)
        with pytest.raises(Killed):
            convert(small_cfg(), settings, pictures, state_file=tmp_path / "b.pth")
    assert (tmp_path / "b.pth").exists()
    resumed = convert(small_cfg(), settings, pictures, state_file=tmp_path / "b.pth")
    assert len(whole.losses) == 6 and len(resumed.losses) == 4
    assert resumed.losses == whole.losses[2:]
    theirs = whole.converted.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in resumed.converted.state_dict().items())

    other = Settings("GN", "distilled", size=SIZE, batch=2, schedule=Schedule(7, 1e-4, True))
    (tmp_path / "c.pth").write_bytes(b"")
    with pytest.raises(NormdetError, match="is empty"):
        convert(small_cfg(), other, pictures, state_file=tmp_path / "c.pth")
