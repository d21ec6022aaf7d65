"""The plan of a comparison: its arms, its grid, and the config of every cell."""

import functools
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from detectron2.config import CfgNode

from normdet.config import load_config
from normdet.engine.summary import flat
from normdet.errors import NormdetError
from normdet.option_text import FROZEN
from normdet.options import METHODS, parse

# The seed of runs that pick rates. No reported run has it.
TUNING_SEED = 0
# Keys that do not change the result of a run.
NOT_HASHED = {
    "OUTPUT_DIR", "SEED", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD",
    "DATASETS.PIXEL_STD",
}  # fmt: skip
# Keys that must be equal for all norms. Otherwise one norm would train on more or other images.
_SHARED = ("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SEED", "OUTPUT_DIR", "DATASETS.")


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: a norm, named by its option's text or by the user.

    Attributes:
        name: in tables and folders.
        option: the norm option.
        keys: further `KEY VALUE` pairs, flat, at the config's own batch size.
        init: a weights file, `"random"`, or `""` for the config's `MODEL.WEIGHTS`.
    """

    name: str
    option: str
    keys: tuple[str, ...] = ()
    init: str = ""

    @property
    def opts(self) -> list[str]:
        """The `KEY VALUE` pairs that make the config this arm's."""
        weights = "" if self.init == "random" else self.init
        return [*self.keys, *(["MODEL.WEIGHTS", weights] if self.init else [])]


@dataclass(frozen=True)
class Cell:
    """One training run of the grid; `factor` multiplies the learning rate of the linear rule."""

    arm: Arm
    batch_size: int
    seed: int
    factor: float = 1.0

    @property
    def tuning(self) -> bool:
        """Whether it only serves to pick a rate on the validation split."""
        return self.seed == TUNING_SEED

    @property
    def slug(self) -> str:
        """The name of its folder."""
        rate = "" if self.factor == 1 and not self.tuning else f"-lr{self.factor:g}"
        seed = "-tuning" if self.tuning else f"-s{self.seed}"
        return f"{_safe(self.arm.name)}-b{self.batch_size}{seed}{rate}"

    @property
    def title(self) -> str:
        """Its name for people."""
        images = f"{self.batch_size} image{'s' if self.batch_size > 1 else ''}"
        rate = "" if self.factor == 1 and not self.tuning else f", rate x{self.factor:g}"
        seed = "tuning" if self.tuning else f"seed {self.seed}"
        return f"{self.arm.name}, {images}, {seed}{rate}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_.")


@dataclass(frozen=True)
class Plan:
    """The grid on one dataset.

    Attributes:
        config_file: the config whose batch size, rate and schedule are the reference.
        opts: `KEY VALUE` pairs on top of it.
        arms: the norms that are compared.
        batch_sizes: images per optimizer step, in one process.
        seeds: of the reported runs.
        factors: the grid of learning rates, as multiples of the linear rule's.
        train: datasets trained on.
        val: the dataset on which rates are picked, if there are several rates.
        test: the dataset that is reported and never used to pick anything.
        norm_parts: the parts that get the norms; None for the usual parts.
    """

    config_file: str
    opts: tuple[str, ...]
    arms: tuple[Arm, ...]
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    factors: tuple[float, ...]
    train: tuple[str, ...]
    val: str
    test: str
    norm_parts: tuple[str, ...] | None = None

    @cached_property
    def base(self) -> CfgNode:
        """The config without any arm's choice."""
        cfg = load_config(self.config_file, self.opts)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = self.train, (self.test,)
        return cfg

    @property
    def grid(self) -> list[tuple[Arm, int]]:
        """Every arm at every batch size, one batch size after another."""
        return [(arm, images) for images in self.batch_sizes for arm in self.arms]

    @property
    def tested(self) -> list[tuple[str, int, int]]:
        """Norm, batch size and seed of every run that is reported, whatever its rate."""
        return [(arm.name, images, seed) for arm, images in self.grid for seed in self.seeds]

    @property
    def baseline(self) -> str:
        """The norm that the others are compared with by default."""
        names = [arm.name for arm in self.arms]
        return FROZEN if FROZEN in names else names[0]

    @property
    def tuned(self) -> bool:
        """Whether rates are picked from a grid."""
        return len(self.factors) > 1

    def config(self, cell: Cell) -> CfgNode:
        """The whole config of a cell."""
        opts = tuple(self._opts(cell))
        cfg = _loaded(self.config_file, opts, cell.arm.option, self.norm_parts).clone()
        cfg.defrost()
        cfg.SEED = cell.seed
        return cfg

    def arguments(self, cell: Cell, folder: Path) -> list[str]:
        """The words after `normdet train` for a cell in `folder`."""
        words = ["--config-file", self.config_file, "--norm", cell.arm.option]
        words += ["--norm-parts", ",".join(self.norm_parts)] if self.norm_parts else []
        opts = [*self._opts(cell), "SEED", str(cell.seed)]
        return [*words, "--resume", "OUTPUT_DIR", str(folder), *opts]

    def _opts(self, cell: Cell) -> list[str]:
        """What all seeds of a cell have in common."""
        test = self.val if cell.tuning else self.test
        data = ["DATASETS.TRAIN", str(self.train), "DATASETS.TEST", str((test,))]
        own = [*self.opts, *cell.arm.opts]
        reference = _loaded(self.config_file, tuple(own), cell.arm.option, self.norm_parts)
        rescaled = scaled(reference, cell.batch_size, cell.factor).items()
        return [*own, *data, *(str(x) for pair in rescaled for x in pair)]

    def tuning_cells(self) -> list[Cell]:
        """The runs that pick rates; none if there is only one rate."""
        if not self.tuned:
            return []
        return [
            Cell(arm, images, TUNING_SEED, factor)
            for arm, images in self.grid
            for factor in self.factors
        ]

    def test_cells(self, chosen: Mapping[tuple[str, int], float] | None = None) -> list[Cell]:
        """The runs that are reported, one seed after another, so that a stop leaves whole rows.

        Args:
            chosen: the rate's factor by arm and batch size; cells without one are left out. With
                one rate there is no choice.
        """
        if not self.tuned:
            chosen = {(arm.name, images): self.factors[0] for arm, images in self.grid}
        return [
            Cell(arm, images, seed, chosen[arm.name, images])
            for seed in self.seeds
            for arm, images in self.grid
            if (arm.name, images) in (chosen or {})
        ]


@functools.lru_cache
def _loaded(file: str, opts: tuple[str, ...], norm: str, parts: tuple | None) -> CfgNode:
    """A config that many cells share; not to be changed."""
    cfg = load_config(file, opts, norm, parts)
    cfg.freeze()
    return cfg


def scaled(cfg: CfgNode, images: int, factor: float = 1.0) -> dict[str, object]:
    """The keys of `cfg` that change with the batch size, for batches of `images`.

    With `k = images / SOLVER.IMS_PER_BATCH`: rates go with `k` (the linear rule), iterations and
    periods with `1 / k`, rounded up to a whole batch, so that every run sees the same number of
    images to within one batch. The momentum `m` of a norm's running averages becomes
    `1 - (1 - m)^k`: they average over the same number of images. Weight decay, clipping, the
    optimizer's own momentum and the first warm-up factor stay. A norm sees the whole batch: it is
    not accumulated over steps and not rescaled to a number of GPUs.

    Args:
        factor: multiplies the linear rule's rate.
    """
    solver = cfg.SOLVER
    k = images / solver.IMS_PER_BATCH

    def steps(count: int) -> int:
        return math.ceil(count / k - 1e-9)

    keys: dict[str, object] = {
        "SOLVER.IMS_PER_BATCH": images,
        "SOLVER.ACCUMULATE_STEPS": 1,
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.BASE_LR": solver.BASE_LR * k * factor,
        "SOLVER.BASE_LR_END": solver.BASE_LR_END * k * factor,
        "SOLVER.MAX_ITER": steps(solver.MAX_ITER),
        "SOLVER.STEPS": tuple(steps(step) for step in solver.STEPS),
        "SOLVER.WARMUP_ITERS": steps(solver.WARMUP_ITERS),
        "SOLVER.CHECKPOINT_PERIOD": steps(solver.CHECKPOINT_PERIOD),
        "TEST.EVAL_PERIOD": steps(cfg.TEST.EVAL_PERIOD),
        "TEST.PRECISE_BN.NUM_ITER": steps(cfg.TEST.PRECISE_BN.NUM_ITER),
    }
    for method in METHODS.values():
        for name in method.params:
            value = cfg.MODEL.NORMDET[method.name][name]
            if name == "MOMENTUM" and k != 1:
                keys[f"MODEL.NORMDET.{method.name}.{name}"] = 1 - (1 - value) ** k
            elif name in ("WARMUP", "OPEN") and k != 1:
                keys[f"MODEL.NORMDET.{method.name}.{name}"] = steps(value)
    return keys


def config_hash(cfg: CfgNode) -> str:
    """Twelve hex digits of everything that decides a run's outcome but its seed and device."""
    content = {key: value for key, value in flat(cfg) if key not in NOT_HASHED}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse_arms(norms: str, variants: Iterable[str], inits: Iterable[str]) -> tuple[Arm, ...]:
    """The arms of the command line.

    Args:
        norms: `--norms A,B`; may be empty.
        variants: each `NAME=OPTION KEY VALUE ...`.
        inits: each `random`, a weights file, or `NAME=` and one of these for one arm.

    Raises:
        NormdetError: on unknown options, names given twice, or an init for no arm.
    """
    arms = [Arm(str(parse(text)), str(parse(text))) for text in norms.split(",") if text]
    for text in variants:
        arms.append(_variant(text))
    slugs = [_safe(arm.name).lower() for arm in arms]
    twice = sorted({arm.name for arm, s in zip(arms, slugs, strict=True) if slugs.count(s) > 1})
    if twice or not all(slugs):
        raise NormdetError(f"names of norms are not distinct: {', '.join(twice) or 'an empty one'}")
    if not arms:
        raise NormdetError("nothing to compare: give --norms A,B or --variant")
    return _with_inits(arms, inits)


def _variant(text: str) -> Arm:
    name, equals, rest = text.partition("=")
    try:
        words = shlex.split(rest)
    except ValueError as error:  # an open quotation
        raise NormdetError(f"--variant {text!r}: {error}") from error
    if not (name.strip() and equals and words) or len(words) % 2 == 0:
        raise NormdetError(
            f"--variant {text!r} should read 'NAME=OPTION KEY VALUE ...', "
            "as in 'GN, 16 groups=GN MODEL.NORMDET.GN.NUM_GROUPS 16'"
        )
    for key in words[1::2]:
        if key.startswith(_SHARED):
            raise NormdetError(
                f"--variant {text!r} sets {key}, which is the same for all that is compared: "
                "give it to the whole command"
            )
    return Arm(name.strip(), str(parse(words[0])), tuple(words[1:]))


def _with_inits(arms: Sequence[Arm], inits: Iterable[str]) -> tuple[Arm, ...]:
    everyone, single = "", {}
    names = {arm.name for arm in arms}
    for text in inits:
        name, equals, weights = text.rpartition("=")
        if equals and name in names:
            single[name] = weights
        elif equals:
            raise NormdetError(f"--init {text!r}: none of {', '.join(sorted(names))} is {name!r}")
        else:
            everyone = text
    return tuple(
        Arm(arm.name, arm.option, arm.keys, single.get(arm.name, everyone)) for arm in arms
    )
