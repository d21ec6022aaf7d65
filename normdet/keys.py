"""normdet's config keys, and how one flag fills every part's own NORM key.

Keys are names and values: nothing here imports detectron2 or a part of a model. Config files are
read by :mod:`normdet.config`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .errors import NormdetError
from .options import METHODS, NormOption, parse
from .parts import NORMED, PARTS, STAGES

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# What the flag sets when no parts are named: the parts that the published GN and SyncBN models of
# detectron2 normalize, so that a row of ours differs from theirs in the norm alone.
USUAL_PARTS = ("backbone", "fpn", "box_head", "mask_head", "retinanet_head", "sem_seg_head")

# The parts whose new norms start from data: the layers after them expect the scale that their
# layers have without a norm. The box head is left out: unit scale suits its predictor better.
START_PARTS = ("fpn", "mask_head")

# The key's value for a part that takes the backbone's norm: a stage, or a C4 detector's res5.
AS_BACKBONE = "as backbone"

# detectron2's key for a part's builder -> the builders that have a normdet form.
BUILDERS: dict[str, tuple[str, ...]] = {
    "MODEL.META_ARCHITECTURE": ("RetinaNet", "GeneralizedRCNN", "PanopticFPN"),
    "MODEL.BACKBONE.NAME": (
        "build_resnet_backbone",
        "build_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone",
    ),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ("KRCNNConvDeconvUpsampleHead",),
    "MODEL.SEM_SEG_HEAD.NAME": ("SemSegFPNHead",),
}
# Detectors whose form of ours serves `IGNORE_PADDING` alone.
_ONLY_PADDED = ("GeneralizedRCNN", "PanopticFPN")


def normdet_name(stock: str) -> str:
    """The name our form of a stock builder is registered under."""
    if stock.startswith("build_"):
        return stock.replace("build_", "build_normdet_", 1)
    return f"Normdet{stock}"


def add_normdet_config(cfg: CfgNode) -> None:
    """Add normdet's keys to a detectron2 config; before `merge_from_file`. Safe to call twice."""
    if "NORMDET" in cfg.MODEL:
        return
    new_node = type(cfg)
    node = cfg.MODEL.NORMDET = new_node()
    # The norms of parts that detectron2 gives no key; "" leaves the part as detectron2 has it.
    node.RPN_HEAD_NORM = ""
    node.BOX_FC_NORM = ""
    node.MASK_DECONV_NORM = ""
    node.KEYPOINT_HEAD_NORM = ""
    # The convolutions of RetinaNet's p6 and p7.
    node.FPN_TOP_NORM = ""
    # The norm of the backbone's stem, or of one stage.
    node.STEM_NORM = AS_BACKBONE
    node.RES2_NORM = AS_BACKBONE
    node.RES3_NORM = AS_BACKBONE
    node.RES4_NORM = AS_BACKBONE
    node.RES5_NORM = AS_BACKBONE
    # The norm of res5 on the regions of a C4 detector.
    node.RES5_HEAD_NORM = AS_BACKBONE
    # Iterations between two measurements of the norms (curves, and norms.html at the end); 0 for
    # none. Curves are written every 20 iterations, so a smaller number shows no more.
    node.STATISTICS_PERIOD = 100
    # The share of training over which norms leave the moments that
    # `normdet convert --rung annealed` stored: `(1 - t) * stored + t * own`, t from 0 to 1.
    node.ANNEAL_UNTIL = 0.5
    node.START = new_node()
    # Norms that start untrained in these parts are set from this many training images, so that they
    # change the function of the network least (normdet.start_from_data); 0 leaves weight 1, bias 0.
    node.START.IMAGES = 8
    node.START.PARTS = START_PARTS
    # If such norms learn their epsilon (LEARNED_EPS), its start value makes this share of their
    # divisor the same for every image. 0 is the norm as its authors define it.
    node.START.KEEP = 0.0
    # Do not keep the output of a fused norm (GN, LN, IN, FRN) for backward; compute it again there.
    # This saves memory, costs one more elementwise pass per norm, and gives the same gradients to
    # the last bit. Under AMP on a GPU, GN also needs GN.AMP_OUTPUT "input": a cast would be kept.
    node.RECOMPUTE = False
    # Train with fixed norms folded into the convolutions before them: FrozenBN, AffineBN, and other
    # batch norms that stay in test mode. Functions, gradients and keys are the same to rounding.
    # `predict`, `eval` and `export` always fold.
    node.FOLD_FIXED = False
    # Train with the channels of weights and maps last in memory, as tensor cores read them under
    # AMP; results are the same to rounding. Off, because no step has been timed so on a GPU.
    node.CHANNELS_LAST = False
    # Images of a batch that are smaller than its largest are padded. True: statistics, convolutions
    # and anchors end where an image ends, so that its result is the one it has alone.
    node.IGNORE_PADDING = False
    # The network of timm under MODEL.BACKBONE.NAME build_normdet_timm_fpn_backbone, such as
    # resnet50.a1_in1k, and a file with its weights; "" starts from random weights.
    node.TIMM = ""
    node.TIMM_WEIGHTS = ""
    # Each method's own parameters. GN.AMP_OUTPUT is what GN gives under AMP on a GPU: "stock" for
    # fp32 as torch's own does, "input" for half precision as it came, in half the memory.
    for method in METHODS.values():
        if method.params:
            node[method.name] = new_node(dict(method.params))

    # What `normdet pretrain` trains on: FOLDER/train/CLASS and FOLDER/val/CLASS, or FOLDER/CLASS.
    cfg.PRETRAIN = new_node()
    cfg.PRETRAIN.DATA = ""
    # Of the folder: the command counts them.
    cfg.PRETRAIN.NUM_CLASSES = 2
    # Pixels of the squares that it sees, and the smallest share of an image that one is cut from.
    cfg.PRETRAIN.SIZE = 224
    cfg.PRETRAIN.SMALLEST_CROP = 0.08
    # The share of a label that goes to all classes alike.
    cfg.PRETRAIN.LABEL_SMOOTHING = 0.0
    # Mix pairs of images: the parameter of the Beta distribution of their shares; 0 for none.
    cfg.PRETRAIN.MIXUP = 0.0
    # The last gamma of each residual branch starts at 0.
    cfg.PRETRAIN.ZERO_LAST_GAMMA = False
    # An optimizer step sums the gradients of this many parts of IMS_PER_BATCH images.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # With several workers: if one gives no answer for this many seconds, or none goes on, the job
    # saves and ends with the reason. 0 waits for ever.
    cfg.SOLVER.HANG_SECONDS = 300
    # Evaluate and save an exponential moving average of the model's weights over its steps; after
    # n steps its decay is the smaller of DECAY and (1 + n) / (10 + n).
    cfg.SOLVER.EMA = new_node()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999
    # What AMP computes in: "float16" (with loss scaling) or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # The folder that relative paths in dataset names such as "coco:train.json:images" start from.
    # In a config file, a folder that begins with a dot is relative to that file, as `_BASE_` is.
    cfg.DATASETS.ROOT = ""
    # The std of the training images' values as they are read, one number for each channel. It
    # checks that pretrained weights see images at the scale they were trained on. () stands for
    # images of 8 bits. `normdet prepare` measures it.
    cfg.DATASETS.PIXEL_STD = ()
    # Training replaces up to this many unreadable images by others and names each. At one more it
    # saves a checkpoint and stops.
    cfg.DATALOADER.MAX_BROKEN_IMAGES = 10
    # Make batches of images of like shape and resize them to one size, drawn for the batch: little
    # is left to pad, and a step of a small size costs less.
    cfg.DATALOADER.LIKE_SIZES = False
    # The largest share of a training set's boxes that may disagree with their masks, or leave their
    # image, by more than rounding. Such boxes of a test set are told and kept.
    cfg.DATASETS.MAX_BOX_FAULTS = 0.1
    # The channels to take from image files whose channels are not colours, counted from 1: "1"
    # makes a grey image, "1,2,3" a colour one. "" is "1,2,2" for two channels, "1,2,3" for more.
    cfg.INPUT.CHANNELS = ""
    # The plane to take from files with several (depth, time, pages): "middle", "max" (the brightest
    # value at each pixel) or a number from 1. Training refuses "all" if a file has several.
    cfg.INPUT.PLANES = "all"
    # Crowds count as neither object nor background. False trains on them as background, as
    # detectron2 does.
    cfg.INPUT.IGNORE_CROWDS = True
    # Flip and turn training images at random, in 8 ways: for images without a natural top.
    cfg.INPUT.RANDOM_D4 = False
    # For large images: train on random squares of this many pixels; evaluate and predict in tiles
    # of this size and merge objects across seams. 0 takes images whole.
    cfg.INPUT.TILE = 0
    # Pixels that neighbouring tiles have in common: more than most objects measure.
    cfg.INPUT.TILE_OVERLAP = 64
    # Where norms of single examples take a tile's statistics: over the whole "image", in a first
    # pass of all its tiles, or over the tile of its "own".
    cfg.INPUT.TILE_STATISTICS = "own"


def get(cfg: CfgNode, key: str):
    """The value at a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def put(cfg: CfgNode, key: str, value) -> None:
    """Set the value at a dotted key."""
    *path, last = key.split(".")
    for name in path:
        cfg = cfg[name]
    cfg[last] = value


def norm_option(cfg: CfgNode, part: str) -> NormOption:
    """The option a part's key asks for, with its parameters.

    Raises:
        NormdetError: on a name that is no option, with its key, or a config without our keys.
    """
    if "NORMDET" not in cfg.MODEL:
        raise NormdetError("the config has no MODEL.NORMDET: call normdet.add_normdet_config(cfg)")
    key = PARTS[part].key
    text = get(cfg, key)
    if text == AS_BACKBONE and PARTS[part].of:
        return norm_option(cfg, PARTS[part].of)
    try:
        return parse(text, cfg.MODEL.NORMDET)
    except NormdetError as error:
        raise NormdetError(f"{key}: {error}") from None


def stage_options(cfg: CfgNode) -> dict[str, NormOption]:
    """The option of the backbone's stem and of each stage, by name."""
    return {stage: norm_option(cfg, stage) for stage in STAGES}


def use_normdet_parts(cfg: CfgNode) -> None:
    """Replace every stock builder that the config names by ours; other builders stay.

    With an option that detectron2 knows, ours compute the same under the same state-dict keys.
    """
    for key, stock in BUILDERS.items():
        name = get(cfg, key)
        if name in stock and (name not in _ONLY_PADDED or ignores_padding(cfg)):
            put(cfg, key, normdet_name(name))


def ignores_padding(cfg: CfgNode) -> bool:
    """Whether an image's result must not depend on the padding of its batch."""
    return "NORMDET" in cfg.MODEL and cfg.MODEL.NORMDET.IGNORE_PADDING


def set_norm(cfg: CfgNode, text: str, parts: Iterable[str] | None = None) -> None:
    """Give a detector the norm `text`: what `--norm` does.

    Args:
        cfg: with our keys (:func:`add_normdet_config`).
        text: an option such as `"GN"` or `"FRN+TLU"`.
        parts: names out of :data:`normdet.parts.NORMED`, or `["all"]`; the usual ones by default.
            `backbone` takes its stages along, each of which can be named alone. Without `parts`
            `FrozenBN` and `AffineBN` go to the backbone alone: a head has no statistics to fix.

    Raises:
        NormdetError: on an unknown option or part.
    """
    option = parse(text)
    chosen = tuple(parts) if parts is not None else USUAL_PARTS
    if chosen == ("all",):
        chosen = tuple(part.name for part in NORMED.values() if not part.of)
    for name in chosen:
        if name not in NORMED:
            raise NormdetError(f"unknown part {name!r} to normalize: one of {', '.join(NORMED)}")
    use_normdet_parts(cfg)
    if "backbone" in chosen:
        for stage in STAGES.values():
            put(cfg, stage.key, AS_BACKBONE)
    for name in chosen:
        if parts is None and not has_part(cfg, name):
            continue
        bare = parts is None and option.needs_statistics and name != "backbone"
        put(cfg, NORMED[name].key, NORMED[name].stock_norm if bare else str(option))


def has_part(cfg: CfgNode, name: str) -> bool:
    """Whether the detector may have the part, as far as its architecture tells."""
    detector = cfg.MODEL.META_ARCHITECTURE.removeprefix("Normdet")
    return detector in (PARTS[name].detectors or (detector,))


def check_config(cfg: CfgNode) -> None:
    """Refuse norms that cannot be parsed, or that a named stock builder would drop or fail on.

    The table of :mod:`normdet.values` says what a value may be.

    Raises:
        NormdetError: naming the key.
    """
    for part in NORMED.values():
        option, stock = norm_option(cfg, part.name), get(cfg, part.builder)
        unknown = part.key.startswith("MODEL.NORMDET.") and get(cfg, part.key) != AS_BACKBONE
        if option and unknown and stock in BUILDERS[part.builder]:
            raise NormdetError(
                f"{part.key} is {str(option)!r}, which {part.builder} {stock!r} ignores: "
                f"use {normdet_name(stock)!r}"
            )
        ours = [normdet_name(name) for name in BUILDERS[part.builder]]
        if option and unknown and part.is_stage and stock not in ours:
            raise NormdetError(
                f"{part.key} is {str(option)!r}, and {part.builder} {stock!r} has no such stage: "
                f"it is for {', '.join(ours)}"
            )
    detector = cfg.MODEL.META_ARCHITECTURE
    if cfg.MODEL.NORMDET.IGNORE_PADDING and not detector.startswith("Normdet"):
        known = BUILDERS["MODEL.META_ARCHITECTURE"]
        use = f"use {normdet_name(detector)!r}" if detector in known else "it would ignore that"
        raise NormdetError(
            f"MODEL.NORMDET.IGNORE_PADDING is True and MODEL.META_ARCHITECTURE {detector!r}: {use}"
        )
    steps, images = cfg.SOLVER.ACCUMULATE_STEPS, cfg.SOLVER.IMS_PER_BATCH
    if steps < 1 or images % steps:
        raise NormdetError(
            f"SOLVER.ACCUMULATE_STEPS {steps} does not divide SOLVER.IMS_PER_BATCH {images}"
        )
    for part in cfg.MODEL.NORMDET.START.PARTS:
        if part not in NORMED:
            raise NormdetError(
                f"MODEL.NORMDET.START: unknown part {part!r}: one of {', '.join(NORMED)}"
            )
