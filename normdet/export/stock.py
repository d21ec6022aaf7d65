"""Plain detectron2: a YAML config and weights that need no normdet."""

import subprocess
import sys
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from torch import nn

from ..errors import NormdetError
from ..keys import AS_BACKBONE, BUILDERS, get, has_part, norm_option, normdet_name, put
from ..options import METHODS
from ..parts import NORMED
from ..weights.files import save_file
from .fold import deployable

# Norms that detectron2 has itself, under the same state-dict keys.
_STOCK = ("FrozenBN", "BN", "SyncBN", "GN")


def stock_config(cfg: CfgNode, weights: str) -> CfgNode:
    """The config of the same detector without normdet.

    A weight method is dropped: `GN+WS` becomes `GN`, since the weights in use are written.

    Args:
        weights: the value of `MODEL.WEIGHTS`.

    Raises:
        NormdetError: a part has a norm, activation or parameter that detectron2 lacks.
    """
    stock = cfg.clone()
    stock.defrost()
    for part, key in ((part.name, part.key) for part in NORMED.values()):
        if not has_part(cfg, part):
            continue
        option = norm_option(cfg, part)
        if why := _refusal(cfg, part):
            raise NormdetError(f"{key} is {str(option)!r}, and detectron2 {why}: export as onnx")
        if not key.startswith("MODEL.NORMDET."):
            put(stock, key, option.norm)
    for key, names in BUILDERS.items():
        for name in names:
            if get(stock, key) == normdet_name(name):
                put(stock, key, name)
    stock.MODEL.WEIGHTS = weights
    _drop_unknown(stock, get_cfg())
    return stock


def _refusal(cfg: CfgNode, part: str) -> str:
    option, key = norm_option(cfg, part), NORMED[part].key
    if key.startswith("MODEL.NORMDET."):
        above = NORMED[part].of  # detectron2 has the backbone's norm there
        if above and get(cfg, key) in (AS_BACKBONE, get(cfg, NORMED[above].key)):
            return ""
        return "has no norm in this part" if option or option.init else ""
    if option.init or option.activation != "ReLU":
        return "knows no such thing"
    if option.norm and option.norm not in _STOCK:
        return f"has no {option.norm}"
    for name, value in option.params.get(option.norm, {}).items() if option.norm else ():
        if value != METHODS[option.norm].params[name]:
            return f"has {option.norm} with {name} {METHODS[option.norm].params[name]} alone"
    return ""


def _drop_unknown(cfg: CfgNode, known: CfgNode) -> None:
    for key in list(cfg):
        if key not in known:
            del cfg[key]
        elif isinstance(cfg[key], CfgNode):
            _drop_unknown(cfg[key], known[key])


def write_stock(cfg: CfgNode, model: nn.Module, path: Path) -> tuple[Path, str]:
    """Write `path`, a YAML file, and the weights `.pth` beside it.

    Returns:
        The weights' path, and how they were made.
    """
    weights = path.with_suffix(".pth")
    stock = stock_config(cfg, weights.name)
    plain = deployable(model, norms=False)
    save_file({"model": plain.state_dict(), "__author__": "normdet"}, weights)
    path.write_text(yaml.safe_dump(yaml.safe_load(stock.dump()), sort_keys=False))
    return weights, "state dict of detectron2's own modules"


_LOAD = """
import sys, torch
assert not any(name.split(".")[0] == "normdet" for name in sys.modules)
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
config, weights, inputs, found = sys.argv[1:]
cfg = get_cfg()
cfg.merge_from_file(config)
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg).eval()
state = torch.load(weights, weights_only=True)["model"]
assert list(model.state_dict()) == list(state), "other keys"
DetectionCheckpointer(model).load(weights)
outputs = []
with torch.no_grad():
    for image in torch.load(inputs, weights_only=True):
        fields = model([{"image": image}])[0]["instances"].get_fields()
        outputs.append({k: getattr(v, "tensor", v) for k, v in fields.items()})
assert not any(name.split(".")[0] == "normdet" for name in sys.modules)
torch.save(outputs, found)
"""


def run_without_normdet(config: Path, weights: Path, images: list, folder: Path) -> list[dict]:
    """The results of a process without normdet on the images, by field.

    Raises:
        NormdetError: the process cannot load the files.
    """
    inputs, found = folder / "images.pt", folder / "found.pt"
    torch.save(images, inputs)
    command = [sys.executable, "-W", "ignore", "-c", _LOAD, config, weights, inputs, found]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise NormdetError(f"detectron2 alone cannot load {config}: {' '.join(last)}")
    return torch.load(found, weights_only=True)
