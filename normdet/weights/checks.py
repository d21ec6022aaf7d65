"""Check that a config suits a weights file, and refuse silent misuse."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fvcore.common.config import CfgNode

from normdet.errors import NormdetError
from normdet.keys import AS_BACKBONE
from normdet.options import NormOption, read_stated
from normdet.parts import NORMED, PARTS, STAGES, Part

from .facts import (
    BACKBONE,
    DIALECT,
    FORMAT,
    IMAGE_STD,
    IMAGENET_STD,
    MEAN,
    STD,
    STRIDE,
    Facts,
    describe,
    find,
    tensors_of,
)
from .importers import Imported, import_weights

__all__ = ["check_weights", "describe"]


def check_weights(cfg: CfgNode, weights: Imported | Mapping[str, Any], source: str) -> list[str]:
    """Refuse weights that a config would silently misuse.

    A convention that is only usual for such files is not enforced; the config wins, with a warning.

    Args:
        cfg: a config with detectron2's keys; normdet's are used where present.
        weights: an importer's result; or tensors by name, or a checkpoint that has them under
            `"model"`, in any layout that the importers know.
        source: path or URL as the user gave it.

    Returns:
        Warnings, one sentence each, for what loads but does not keep the network's function.

    Raises:
        NormdetError: the stride, channel order or pixel scale is not that of the weights; a part
            has another weight method than its weights were trained with, or another dialect of WS;
            or the config would train weights with folded batch statistics as BN.
    """
    imported = weights if isinstance(weights, Imported) else import_weights(weights, source)
    facts = imported.facts
    _check_settings(cfg, facts, source)
    warnings = _compare_means(cfg, facts, source) + _differing(cfg, facts, source)
    warnings += _seen_darker(cfg, facts, source)
    warnings += [f"{source}: {note}" for note in imported.notes]
    for stage in list(STAGES.values())[cfg.MODEL.BACKBONE.FREEZE_AT :]:
        key, text = _stated(cfg, stage)
        if facts.folded and read_stated(text).needs_batch:
            raise NormdetError(
                f"{source} has no batch statistics, they are folded into the affine, which holds "
                f"only while frozen, and {key} is {text!r}: set {key} FrozenBN, or take weights "
                "that have running_mean and running_var"
            )
    norms = dict(facts.norms)
    if BACKBONE not in norms:
        warnings += _unknown_standardization(read_stated(cfg.MODEL.RESNETS.NORM), facts, source)
    for key, norm in facts.shown.items():
        ours = read_stated(str(find(cfg, key)))
        unseen = ours.weight if ours.weight_method.traceless else ""
        norms.setdefault(key, str(replace(read_stated(norm), weight=unseen)))
    for part in NORMED.values():
        theirs = norms.get(part.key)
        if part.is_stage and (theirs or find(cfg, part.key) not in (None, AS_BACKBONE)):
            theirs = theirs or norms.get(BACKBONE)
        here = part.key == BACKBONE or tensors_of(imported.model, part)
        if theirs is not None and find(cfg, part.key) is not None and here:
            warnings += _check_norm(cfg, part, theirs, facts.settings, source)
    return warnings


def _stated(cfg: CfgNode, part: Part) -> tuple[str, str]:
    """The key that states a part's option in the config, and the option's text."""
    text = find(cfg, part.key)
    if part.of and text in (None, AS_BACKBONE):
        return _stated(cfg, PARTS[part.of])
    return part.key, str(text)


def _unknown_standardization(ours: NormOption, facts: Facts, source: str) -> list[str]:
    untold = f"{BACKBONE} is {ours}, and nothing tells whether {source} was trained with"
    if ours.weight_method.traceless:
        return [f"{untold} {ours.weight}: weights that were not lose their function under it"]
    if facts.shown.get(BACKBONE) == "GN" and STRIDE in facts.assumed and not ours.weight:
        # Published GN weights exist with and without WS, under the same names.
        wanted = replace(ours, weight="WS")
        return [f"{untold} WS: weights that were need {BACKBONE} {wanted}"]
    return []


def _check_settings(cfg: CfgNode, facts: Facts, name: str) -> None:
    settings = facts.settings
    wrong = [key for key in (STRIDE, FORMAT, STD) if not _suits(cfg, key, settings)]
    shown = [STD] if _other_scale(cfg, facts) else []
    if stated := [key for key in wrong if key not in facts.assumed or key in shown]:
        theirs = ", ".join(f"{key} {settings[key]}" for key in stated)
        ours = ", ".join(f"{key} {find(cfg, key)}" for key in stated)
        # The mean is listed in the order of the channels.
        change = [*wrong, MEAN] if FORMAT in wrong and MEAN in settings else wrong
        wanted = dict(settings)
        if STD in wrong:
            wanted[STD] = _wanted_std(cfg, settings)
            if images := find(cfg, IMAGE_STD):
                ours += f" for images of {IMAGE_STD} {list(images)}"
        way_out = " ".join(f'{key} "{wanted[key]}"' for key in change)
        if STD in wrong and not find(cfg, IMAGE_STD) and max(find(cfg, STD)) > max(settings[STD]):
            way_out += f", or {IMAGE_STD} to the std of the images' values if they exceed 8 bits"
        raise NormdetError(
            f"{name} was trained with {theirs}, the config has {ours}: set {way_out}"
        )


def _differing(cfg: CfgNode, facts: Facts, name: str) -> list[str]:
    """Warnings if the config differs from the usual, or from how a detector was trained."""
    warnings = []
    unlike = (MEAN, DIALECT, IMAGE_STD)
    known = {key: value for key, value in facts.settings.items() if key not in unlike}
    wrong = [key for key in known if not _suits(cfg, key, facts.settings)]
    for keys, how in (
        ([key for key in wrong if key in facts.assumed], "files of its kind usually are"),
        ([key for key in wrong if key not in facts.assumed], "it was"),
    ):
        if keys:
            theirs = " ".join(f'{key} "{known[key]}"' for key in keys)
            if STD in keys and find(cfg, IMAGE_STD):
                theirs += f', for these images "{_wanted_std(cfg, facts.settings)}"'
            ours = ", ".join(f"{key} {find(cfg, key)}" for key in keys)
            warnings.append(f"{name} is used with {ours}; {how} trained with {theirs}")
    return warnings


def _seen_darker(cfg: CfgNode, facts: Facts, name: str) -> list[str]:
    """A warning if the weights see the images at far less contrast than they were trained on."""
    if not find(cfg, IMAGE_STD) or facts.settings.get(STD) is None:
        return []
    ratio = max(a / b for a, b in zip(*_scales(cfg, facts.settings), strict=True))
    if ratio < 4:
        return []
    return [
        f"{name} sees the images at 1/{ratio:.0f} of the contrast it was trained on: "
        f'{STD} "{_wanted_std(cfg, facts.settings)}" keeps it'
    ]


# The geometric mean of 1, the std of pixels divided by their deviation, and 58, that of raw ones.
_RAW_STD = 7.6


def _other_scale(cfg: CfgNode, facts: Facts) -> bool:
    """Whether the stem's statistics are of pixels of another scale than the config's."""
    ours, _ = _scales(cfg, facts.settings)
    return bool(ours) and facts.raw_pixels not in (None, max(ours) < _RAW_STD)


def _suits(cfg: CfgNode, key: str, settings: Mapping[str, Any]) -> bool:
    ours, theirs = find(cfg, key), settings.get(key)
    if ours is None or theirs is None:
        return True
    if key == STRIDE:  # basic blocks have no 1x1 convolution
        return bool(ours) == bool(theirs) or cfg.MODEL.RESNETS.DEPTH < 50
    if key == FORMAT:
        return {ours, theirs} != {"RGB", "BGR"}
    if key != STD:
        return _lists(ours) == _lists(theirs)
    # A std of 1 instead of 57 changes the network's function; that of the user's images does not.
    # Dark images have a small std, so allow a wider range below if the images' std is known.
    low, high = (1 / 4, 20) if find(cfg, IMAGE_STD) else (1 / 20, 4)
    return all(b * low < a < b * high for a, b in zip(*_scales(cfg, settings), strict=True))


def _scales(cfg: CfgNode, settings: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """PIXEL_STD of the config and of the weights, scaled to images with ImageNet's deviation."""
    ours, theirs = find(cfg, STD) or [], settings.get(STD) or []
    images = settings.get(IMAGE_STD) or [IMAGENET_STD]
    ours, theirs = _relative(ours, find(cfg, IMAGE_STD) or images), _relative(theirs, images)
    return (ours, theirs) if len(ours) == len(theirs) else (_mean(ours), _mean(theirs))


def _relative(std: Sequence[float], images: Sequence[float]) -> list[float]:
    images = images if len(images) == len(std) else _mean(images) * len(std)
    return [a * IMAGENET_STD / b for a, b in zip(std, images, strict=True)]


def _mean(values: Sequence[float]) -> list[float]:
    """The mean for a grey channel, from those of three colour channels."""
    return [sum(values) / len(values)] if values else []


def _wanted_std(cfg: CfgNode, settings: Mapping[str, Any]) -> list[float]:
    """The PIXEL_STD under which the weights see the config's images at the scale they know."""
    images = find(cfg, IMAGE_STD) or settings.get(IMAGE_STD) or [IMAGENET_STD]
    _, theirs = _scales(cfg, settings)
    images = images if len(images) == len(theirs) else _mean(images) * len(theirs)
    return [round(a * b / IMAGENET_STD, 4) for a, b in zip(theirs, images, strict=True)]


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _compare_means(cfg: CfgNode, facts: Facts, name: str) -> list[str]:
    if find(cfg, IMAGE_STD):  # images with known statistics have their own mean
        return []
    ours, theirs = find(cfg, MEAN), facts.settings.get(MEAN)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return []
    if all(abs(a - b) < 2 for a, b in zip(ours, theirs, strict=True)):
        return []
    how = "is usually" if MEAN in facts.assumed else "was"
    return [f"{name} {how} trained with {MEAN} {list(theirs)}, the config has {list(ours)}"]


def _check_norm(
    cfg: CfgNode, part: Part, theirs: str, settings: Mapping[str, Any], name: str
) -> list[str]:
    """Compare one part's option in the config with that of the weights."""
    key, (_, text) = part.key, _stated(cfg, part)
    ours, stated = read_stated(text), read_stated(theirs)
    if ours.weight != stated.weight and (stated.weight or ours.weight_method.traceless):
        method = stated.weight or ours.weight
        method = "weight standardization" if method == "WS" else method
        how = f"{'with' if stated.weight else 'without'} {method}"
        raise NormdetError(
            f"{name} was trained {how} and {key} is {text!r}: its weights mean nothing there; "
            f"set {key} {_under(ours, stated)}"
        )
    if ours.weight == "WS":
        trained, asked = settings.get(DIALECT), find(cfg, DIALECT)
        if None not in (trained, asked) and trained != asked:
            raise NormdetError(
                f"{name} was trained with the WS dialect {trained!r} and {DIALECT} is {asked!r}: "
                f"set {DIALECT} {trained}"
            )
    if ours.weight == stated.weight or ours.weight_method.takes_plain:
        ours, stated = replace(ours, weight=""), replace(stated, weight="")
    plain = ours.activation == stated.activation and ours.weight == stated.weight
    if ours == stated or (plain and ours.starts_as_bn and stated.tests_as_bn):
        return []
    return [
        f"{name} was trained with {str(stated) or 'no norm'} and {key} is {str(ours) or 'no norm'}"
        ": what fits is copied, but the network's function is lost until trained again; `normdet "
        "convert` keeps what that norm can hold"
    ]


def _under(ours: NormOption, theirs: NormOption) -> str:
    """Our option with their weight method, or their option if we have no norm."""
    return str(replace(ours, weight=theirs.weight) if ours or not theirs.weight else theirs)
