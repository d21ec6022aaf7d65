"""The parts of a detector: one table of their names, their norms' config keys and their tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of a detector.

    Attributes:
        name: as `--norm-parts` takes it.
        title: as tables show it; parts of one title share a row.
        prefixes: what the names of its tensors begin with in a detectron2 model. A backbone's file
            may leave out the first words.
        key: the config key of its norm, detectron2's where it has one; `""` for a part that has no
            norm of its own, such as a predictor.
        builder: the config key that names what builds it.
        of: the part whose norm it takes unless its own key names another: for a stage, `backbone`.
        stock_norm: the norm that detectron2 has there by default.
        detectors: the architectures that have it, if not all do.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    key: str = ""
    builder: str = ""
    of: str = ""
    stock_norm: str = ""
    detectors: tuple[str, ...] = ()

    @property
    def is_stage(self) -> bool:
        """Whether it is the backbone's stem or one of its stages."""
        return self.of == "backbone" and self.builder == _BACKBONE


_BACKBONE, _BOX = "MODEL.BACKBONE.NAME", "MODEL.ROI_BOX_HEAD.NAME"
_MASK, _KEYPOINT = "MODEL.ROI_MASK_HEAD.NAME", "MODEL.ROI_KEYPOINT_HEAD.NAME"


def _stage(name: str) -> Part:
    prefixes = (f"backbone.bottom_up.{name}.", f"backbone.{name}.", f"{name}.")
    key = f"MODEL.NORMDET.{name.upper()}_NORM"
    return Part(name, f"backbone {name}", prefixes, key, _BACKBONE, of="backbone")


# In the order data flows.
PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        *map(_stage, ("stem", "res2", "res3", "res4", "res5")),
        Part(
            "backbone", "backbone",
            ("backbone.bottom_up.", "backbone.stem.", "backbone.res", "stem.", "res"),
            "MODEL.RESNETS.NORM", _BACKBONE,
        ),
        Part("other_backbone", "backbone", ("backbone.",)),
        Part(
            "fpn_top", "FPN top", ("backbone.top_block.",),
            "MODEL.NORMDET.FPN_TOP_NORM", _BACKBONE,
        ),
        Part("fpn", "FPN", ("backbone.fpn_", "fpn_"), "MODEL.FPN.NORM", _BACKBONE),
        Part(
            "rpn_head", "RPN head", ("proposal_generator.rpn_head.",),
            "MODEL.NORMDET.RPN_HEAD_NORM", "MODEL.RPN.HEAD_NAME",
        ),
        # A C4 detector's last stage, which runs on regions.
        Part(
            "res5_head", "res5 on regions", ("roi_heads.res5.",),
            "MODEL.NORMDET.RES5_HEAD_NORM", "MODEL.ROI_HEADS.NAME", of="backbone",
        ),
        Part(
            "box_head", "box head", ("roi_heads.box_head.conv", "box_head.conv"),
            "MODEL.ROI_BOX_HEAD.NORM", _BOX,
        ),
        Part(
            "box_fc", "box head", ("roi_heads.box_head.fc",),
            "MODEL.NORMDET.BOX_FC_NORM", _BOX,
        ),
        Part("box_predictor", "box predictor", ("roi_heads.box_predictor.",)),
        Part(
            "mask_head", "mask head", ("roi_heads.mask_head.mask_fcn", "mask_head.mask_fcn"),
            "MODEL.ROI_MASK_HEAD.NORM", _MASK,
        ),
        Part(
            "mask_deconv", "mask head", ("roi_heads.mask_head.deconv",),
            "MODEL.NORMDET.MASK_DECONV_NORM", _MASK,
        ),
        Part("mask_predictor", "mask head", ("roi_heads.mask_head.",)),
        Part(
            "keypoint_head", "keypoint head", ("roi_heads.keypoint_head.",),
            "MODEL.NORMDET.KEYPOINT_HEAD_NORM", _KEYPOINT,
        ),
        Part(
            "retinanet_head", "RetinaNet head", ("head.",),
            "MODEL.RETINANET.NORM", "MODEL.META_ARCHITECTURE",
        ),
        Part(
            "sem_seg_head", "semantic head", ("sem_seg_head.",),
            "MODEL.SEM_SEG_HEAD.NORM", "MODEL.SEM_SEG_HEAD.NAME",
            stock_norm="GN", detectors=("PanopticFPN", "SemanticSegmentor"),
        ),
        Part("instance_head", "instance head", ("ins_embed_head.",)),
        Part("proposals", "proposals", ("proposal_generator.",)),
        Part("regions", "regions", ("roi_heads.",)),
        Part("detector", "detector", ("",)),
    )
}  # fmt: skip

# Which of a cascade's box heads a tensor is of.
_OF_A_CASCADE = re.compile(r"(?<=^roi_heads\.box_head\.)\d+\.")
NORMED = {name: part for name, part in PARTS.items() if part.key}
STAGES = {name: part for name, part in PARTS.items() if part.is_stage}


def owner(name: str) -> Part:
    """The part that a tensor or module belongs to, by its name; the longest prefix counts."""
    name = _OF_A_CASCADE.sub("", name.removeprefix("module.") + ".", count=1)
    fits = [(len(p), part) for part in PARTS.values() for p in part.prefixes if name.startswith(p)]
    return max(fits, key=lambda fit: fit[0])[1]


def belongs(name: str, part: Part) -> bool:
    """Whether a tensor belongs to a part or, as for `backbone`, to one of its stages."""
    owned = owner(name)
    return part in (owned, PARTS[owned.of] if owned.is_stage else None)
