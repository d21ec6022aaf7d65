"""A small detector whose BN statistics are those of its images."""

import copy

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from PIL import Image

from normdet.config import load_config
from normdet.weights import save_file
from tests.engine.conftest import TINY

# The engine's detector, with BN wherever a norm may stand.
SMALL = copy.deepcopy({key: TINY[key] for key in ("MODEL", "INPUT", "VERSION")})
SMALL["MODEL"]["RESNETS"]["NORM"] = SMALL["MODEL"]["FPN"]["NORM"] = "BN"
SMALL["MODEL"]["ROI_BOX_HEAD"].update(NUM_CONV=1, CONV_DIM=32, NORM="BN")
SMALL["MODEL"]["ROI_MASK_HEAD"].update(CONV_DIM=32, NORM="BN")
SMALL["MODEL"]["NORMDET"] = {"GN": {"NUM_GROUPS": 8}}
SMALL["INPUT"].update(MIN_SIZE_TEST=96, MAX_SIZE_TEST=160)


def scenes(count: int) -> list[torch.Tensor]:
    """Pictures `(3, 96, 96)` of blocks on slopes, of differing contrast."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        slope = np.linspace(0, rng.uniform(20, 120), 96)
        picture = np.broadcast_to(slope[:, None, None], (96, 96, 3)).copy()
        for _ in range(6):
            y, x = rng.integers(0, 76, 2)
            picture[y : y + 20, x : x + 20] += rng.uniform(20, 130, 3)
        picture += rng.normal(0, 4, picture.shape)
        pictures.append(torch.from_numpy(picture.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
    return pictures


@pytest.fixture(scope="session")
def pictures():
    return scenes(16)


@pytest.fixture(scope="session")
def picture_folder(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(pictures):
        pixels = picture.permute(1, 2, 0).numpy()[:, :, ::-1]  # the config's order is BGR
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def small_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="session")
def small_weights(small_config, pictures, tmp_path_factory):
    """The detector's weights, with the pictures' averages, and gammas and betas off their start."""
    from normdet.convert.views import Views

    torch.manual_seed(0)
    model = build_model(load_config(small_config))
    for name, parameter in model.named_parameters():
        if ".norm." in name:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
        if name.endswith("conv3.norm.weight"):  # branches weigh little, as in trained networks
            parameter.data *= 0.3
    norms = [m for m in model.modules() if hasattr(m, "reset_running_stats")]
    # Average over all inputs; layers settle one after another.
    views = Views(model, [name for name, _ in model.named_parameters()])
    images = torch.stack(pictures).float()
    for _ in range(3):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            regions = views.regions(images) if model.eval() else []
            for norm in norms:
                norm.train()
            views(images, regions)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save_file({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def small_cfg(small_config, small_weights):
    """A function from config keys and values to the detector's config."""

    def make(*opts, norm=None):
        return load_config(small_config, ["MODEL.WEIGHTS", str(small_weights), *opts], norm)

    return make
