"""One conversion from a checkpoint to a checkpoint, rung by rung."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from normdet.errors import NormdetError
from normdet.keys import AS_BACKBONE, check_config, get, norm_option, put
from normdet.options import METHODS, NormOption, names, parse
from normdet.parts import NORMED
from normdet.weights import LoadReport, load_file, load_model, save_file
from normdet.weights.facts import describe
from normdet.weights.importers import unwrap

from .calibrate import measure
from .closed_form import convert_norms
from .crops import centre_crops, check_size, held_out, random_crops
from .distill import Schedule, distill
from .measure import Classifier, compare
from .sites import Site
from .views import Views

RUNGS = ("closed", "calibrated", "distilled", "annealed")
# Norms that take --keep (a learned epsilon) and --rung annealed.
PER_EXAMPLE = tuple(name for name in names("norm") if "LEARNED_EPS" in METHODS[name].params)
# Norms that can be converted: one affine per channel at test time, or moments of examples.
_SOURCES = (*(name for name in names("norm") if parse(name).tests_as_bn), *PER_EXAMPLE)


@dataclass
class Settings:
    """How a network is converted.

    Attributes:
        to: the option it gets.
        rung: one of :data:`RUNGS`.
        keep: see :func:`.closed_form.convert_norms`.
        parts: names out of :data:`normdet.parts.NORMED`; by default those that have a norm.
        size: side, in pixels, of the square crops of images that are used.
        crop: the same in a step of distillation, where smaller ones are faster; 0 for `size`.
        batch: crops in a step of distillation.
        seed: of the crops.
        schedule: of distillation.
    """

    to: str
    rung: str = "closed"
    keep: float = 0.0
    parts: Sequence[str] | None = None
    size: int = 224
    crop: int = 0
    batch: int = 8
    seed: int = 0
    schedule: Schedule = field(default_factory=Schedule)


@dataclass
class Conversion:
    """A converted network, and how it was made.

    Attributes:
        cfg: the config of the converted network.
        original: the network it was made from, in test mode.
        converted: the network under its new norm, in test mode.
        report: how the original was loaded.
        achieved: by rung, what :func:`.measure.compare` found on held-out images.
        losses: of distillation.
    """

    cfg: CfgNode
    original: nn.Module
    converted: nn.Module
    report: LoadReport
    achieved: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        """The tensors of the parts that the file filled, without those that kept start values."""

        def part(name: str) -> str:
            return ".".join(name.split(".")[:2])

        parts = {part(name) for name in self.report.matched}
        anew = {*self.report.missing, *self.report.reinitialized}
        names = self.converted.state_dict()
        return [name for name in names if part(name) in parts and name not in anew]

    def save(self, path: Path) -> None:
        """Write the converted tensors with what a checkpoint says of itself."""
        state = self.converted.state_dict()
        tensors = {name: state[name] for name in self.loaded}
        save_file({"model": tensors, "normdet": describe(self.cfg)}, path)


def convert(
    cfg: CfgNode,
    settings: Settings,
    images: Sequence[Tensor] = (),
    *,
    check: Sequence[Tensor] | None = None,
    state_file: Path | None = None,
    allow_unsafe: bool = False,
) -> Conversion:
    """Convert the network of a config and its `MODEL.WEIGHTS` to another norm.

    Args:
        cfg: of the network as it is.
        settings: how to convert it.
        images: `(C, H, W)` pixels in the config's channel order, unlabelled; some 16 to 64.
        check: images to measure on; by default every fourth of `images`, which is then not fitted.
        state_file: where distillation keeps its state while it runs.
        allow_unsafe: see :func:`normdet.weights.load_file`.

    Raises:
        NormdetError: the conversion cannot be done, with the reason.
    """
    target = target_config(cfg, settings)
    if not cfg.MODEL.WEIGHTS:
        raise NormdetError("there are no weights to convert: MODEL.WEIGHTS is empty")
    original, report = load_model(cfg, allow_unsafe=allow_unsafe)
    converted = build_model(_unfrozen(target)).eval()
    views = Views(original, report.matched)
    for size in filter(None, (settings.size, settings.crop)):
        check_size(size, original.backbone.size_divisibility)
    if settings.rung in ("calibrated", "distilled") and not images:
        raise NormdetError(f"--rung {settings.rung} takes images: give --images or --dataset")
    fitted, checked = held_out(images) if check is None else (list(images), list(check))

    done = Conversion(target, original, converted, report)
    ours = Views(converted, report.matched)
    classifier = classifier_of(cfg, original, allow_unsafe) if checked else None
    squares = centre_crops(checked, settings.size) if checked else None

    def measured(rung: str) -> None:
        if squares is not None:
            done.achieved[rung] = compare(views, ours, squares, classifier)

    samples = patches = None
    if fitted and settings.rung != "closed":
        pixels = centre_crops(fitted, settings.size)
        samples, patches = measure(original, converted, views, pixels)
    sites = convert_norms(
        original, converted, samples=samples, patches=patches, keep=settings.keep,
        leave_later=settings.rung == "annealed",
    )  # fmt: skip
    measured(settings.rung if settings.rung != "distilled" else "calibrated")
    if settings.rung == "distilled":
        done.losses = _distill(views, ours, sites, fitted, settings, state_file)
        measured("distilled")
    return done


def _distill(
    views: Views, ours: Views, sites: list[Site], images: list[Tensor], settings: Settings,
    state_file: Path | None,
) -> list[float]:  # fmt: skip
    def batch(step: int) -> Tensor:
        size = settings.crop or settings.size
        return random_crops(images, size, settings.batch, settings.seed, step)

    return distill(views, ours, sites, batch, settings.schedule, state_file or Path("distill.pth"))


def target_config(cfg: CfgNode, settings: Settings) -> CfgNode:
    """The config of the converted network.

    Raises:
        NormdetError: the network cannot be converted, or not to this option.
    """
    option = parse(settings.to)
    if option.init:
        raise NormdetError(f"{option} has no norms to take a network over into")
    if not 0 <= settings.keep < 1:
        raise NormdetError(f"--keep {settings.keep}: a share from 0 to below 1")
    annealed = settings.rung == "annealed"
    for flag, wanted in (("--keep", settings.keep), ("--rung annealed", annealed)):
        if wanted and option.norm not in PER_EXAMPLE:
            raise NormdetError(f"{flag} is for {', '.join(PER_EXAMPLE)}, not for {option.norm}")
    old = {part: norm_option(cfg, part) for part in NORMED if part != "res5_head"}
    parts = settings.parts or [
        part for part, norm in old.items() if norm and get(cfg, NORMED[part].key) != AS_BACKBONE
    ]
    if not parts:
        raise NormdetError("no part of this model has a norm: name the parts to give one, --parts")
    target = cfg.clone()
    for part in parts:
        if part not in old:
            raise NormdetError(f"unknown part {part!r}: one of {', '.join(old)}")
        _check_source(part, old[part], option)
        put(target, NORMED[part].key, str(option))
    if option.norm in PER_EXAMPLE:  # new norms of a frozen stage could not adapt
        target.MODEL.BACKBONE.FREEZE_AT = 0
    if settings.keep:
        target.MODEL.NORMDET[option.norm].LEARNED_EPS = "always"
    check_config(target)
    return target


def _check_source(part: str, old: NormOption, new: NormOption) -> None:
    if old.init or (old and old.norm not in _SOURCES):
        raise NormdetError(
            f"{part} is under {old}, which is no fixed affine at test time: "
            f"what can be taken over is {', '.join(_SOURCES)}"
        )
    if old.activation == "TLU" and new.activation != "TLU":
        raise NormdetError(f"{part} has TLU, whose thresholds only an option with TLU keeps")
    if old.weight and old.weight != new.weight and not old.weight_method.takes_plain:
        raise NormdetError(
            f"{part} is under {old}: convert to an option with {old.weight}, which its weights need"
        )


def _unfrozen(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # a frozen BN stage would be built as another class
    return cfg


def classifier_of(
    cfg: CfgNode, original: nn.Module, allow_unsafe: bool = False
) -> Classifier | None:
    """The classifier in an ImageNet file, if it has one that fits the backbone."""
    path = cfg.MODEL.WEIGHTS
    if not Path(path).is_file():
        return None
    state: dict[str, Any] = unwrap(load_file(path, allow_unsafe=allow_unsafe), path)["model"]
    for name in ("fc", "stem.fc", "linear", "head.fc", "module.fc"):
        weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        bottom = getattr(original.backbone, "bottom_up", original.backbone)
        if weight is None or bias is None or "res5" not in getattr(bottom, "stage_names", ()):
            continue
        if tuple(weight.shape[1:]) == (bottom.output_shape()["res5"].channels,):
            device = next(original.parameters()).device
            return Classifier(weight.float().to(device), bias.float().to(device))
    return None
