"""`normalize`: any network with any norm."""

import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate
from torch import nn

from ..errors import NormdetError
from ..options import NormOption, parse
from . import known
from .recorded import record
from .replace import (
    Rewrites,
    check_option,
    new_norm,
    put_site,
    remove_activation,
)
from .sites import Finder, Join, Site

logger = logging.getLogger(__name__)

STARTS = ("keep", "fresh")


@dataclass
class Change:
    """One place that has another norm now.

    Attributes:
        name: of the norm, or of the join's activation.
        before: the norm or activation that was there.
        after: the option, or the activation.
        activated: whether the norm has the activation fused.
    """

    name: str
    before: str
    after: str
    activated: bool


@dataclass
class Left:
    """One place that was not changed, and why."""

    name: str
    what: str
    why: str


@dataclass
class NormReport:
    """What :func:`normalize` changed, what it left and what it started from data.

    `str` gives the first two as tables.
    """

    changed: list[Change] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            tabulate(
                [(c.name, c.before, c.after + (" fused" if c.activated else ""))
                 for c in self.changed],
                ["changed", "was", "is"],
            )
        ]  # fmt: skip
        if self.left:
            rows = [(item.name, item.what, item.why) for item in self.left]
            parts.append(tabulate(rows, ["left", "is", "because"]))
        return "\n\n".join(parts)


@dataclass
class Bare:
    """What to normalize in a network of a known kind beside the norms it has.

    Attributes:
        modules: the parts asked for, as names of modules; None for all.
        dress: by the name of a part without norms, the function that gives it norms.
        start: called with the network, batches and names of norms. It sets the affine of norms in
        parts that had none, and returns the names of those that it started.
    """

    modules: list[str] | None
    dress: dict[str, Callable[[], Any]]
    start: Callable[[nn.Module, Iterable[Any], list[str]], list[str]]


# Functions from `(model, option, parts)` to a Bare, or to None for an unknown kind of network. All
# are called for every network.
_BARE: list[Callable[[nn.Module, NormOption, list[str] | None], Bare | None]] = []


def knows_bare_parts(find: Callable) -> Callable:
    """Register a function that finds the parts without norms of some kind of network."""
    _BARE.append(find)
    return find


def normalize(
    model: nn.Module,
    norm: str | NormOption,
    *,
    parts: Iterable[str] | None = None,
    start: str | Iterable[Any] = "keep",
    inputs: Sequence[Any] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    strict: bool = True,
) -> nn.Module:
    """Give a network another norm, in place: its norms, the activations that belong to them, and,
    under a weight method, the convolutions before them.

    A norm computes the activation behind it in the same pass. Some blocks call their activation as
    a function or share one, as detectron2's and torchvision's do. Their forward is rewritten with
    torch.fx; `isinstance` still holds. State-dict keys stay if the norms have the same ones (GN for
    BN: `weight` and `bias`); TLU adds `tau`.

    Args:
        model: any network. A detector of detectron2 is changed as by `--norm`: an FPN and heads
            without norms get some.
        norm: an option such as `"GN+WS"`.
        parts: names of modules, with `*` if wanted (`"backbone.*"`, `"layer4"`): only what is below
            them; the whole network by default. In a detector of detectron2 also the names that
            `--norm-parts` takes.
        start: `"keep"` takes over the affine, and between norms of batch statistics these too;
            `"fresh"` starts every norm at gamma 1 and beta 0. Batches, as a detector takes them in
            training, keep too. They also start the norms that are put where there were none, so
            that these change the network's function least (:func:`normdet.start_from_data`).
        inputs: arguments for the model's forward. It is run once in inference, to see what follows
            a norm if the code does not tell.
        params: the methods' parameters, as `{"GN": {"NUM_GROUPS": 16}}`.
        strict: refuse if a norm cannot be replaced for certain; else it is left, and reported.

    Returns:
        The network, with a :class:`NormReport` as `norm_report`. It is another object only if
        `model` itself was a norm.

    Raises:
        NormdetError: an unknown option, a part that is not there, nothing to replace, or under
            `strict` a norm that cannot be replaced: each with its reason. Nothing is changed then.
    """
    option = norm if isinstance(norm, NormOption) else parse(norm, params)
    check_option(option)
    if isinstance(start, str) and start not in STARTS:
        names = ", ".join(map(repr, STARTS))
        raise NormdetError(f"start {start!r} is not one of {names}, nor batches of images")
    parts = [parts] if isinstance(parts, str) else parts if parts is None else list(parts)
    bare = next((b for b in (find(model, option, parts) for find in _BARE) if b is not None), None)
    if bare is not None:
        parts = bare.modules
    levels = record(model, inputs) if inputs is not None else None
    finder = Finder(model, levels)
    chosen = _chosen(model, parts)
    plan = _Plan(option, finder, chosen)
    plan.add_last_dim_norms(model, chosen)
    if not plan.sites and not (bare and bare.dress):
        raise NormdetError(_nothing(option, plan.left, parts))
    if strict and (hard := [item for item in plan.left if item.what not in _HARMLESS]):
        listed = "; ".join(f"{item.name} ({item.what}): {item.why}" for item in hard[:5])
        more = f"; and {len(hard) - 5} more" if len(hard) > 5 else ""
        raise NormdetError(
            f"{option} cannot replace {len(hard)} of {len(hard) + len(plan.sites)} norms for sure: "
            f"{listed}{more}. Name the parts= to normalize, or leave these with strict=False"
        )
    from_data = not isinstance(start, str)
    if from_data and not (bare and bare.dress):
        raise NormdetError(
            "start: batches start norms that are put where there were none, and here each takes "
            "the place of another: use start='keep', or `normdet convert`"
        )
    report = plan.apply(fresh=not from_data and start == "fresh")
    before = {name for name, module in model.named_modules() if known.is_norm(module)}
    for name, dress in bare.dress.items() if bare else ():
        dress()
        report.changed.append(Change(name, "none", str(option), False))
    if from_data:
        names = [name for name, module in model.named_modules() if known.is_norm(module)]
        report.started = bare.start(model, start, [name for name in names if name not in before])
    model.norm_report = report
    logger.info("normalize %s: %d norms changed, %d left", option, len(plan.sites), len(plan.left))
    return model


_HARMLESS = ("LayerNorm over the last dimension",)


def _chosen(model: nn.Module, parts: Iterable[str] | None) -> set[str] | None:
    """The names of all modules below the parts asked for."""
    if parts is None:
        return None
    names = [name for name, _ in model.named_modules()]
    chosen: set[str] = set()
    for part in parts:
        roots = [n for n in names if n == part or fnmatch.fnmatchcase(n, part)]
        if not roots:
            raise NormdetError(f"parts names {part!r}, and no module of the network is called so")
        chosen |= {n for n in names if any(n == r or n.startswith(f"{r}.") for r in roots)}
    return chosen


def _nothing(option: NormOption, left: list[Left], parts: Iterable[str] | None) -> str:
    where = "the network" if parts is None else f"parts {list(parts)}"
    if not left:
        return f"{where} has no norm that {option} could replace"
    reasons = dict.fromkeys(f"{item.name}: {item.why}" for item in left[:5])
    return f"{where} has no norm that {option} can replace: {'; '.join(reasons)}"


def _has_statistics(norm: nn.Module) -> bool:
    first = norm[0] if known.is_per_level(norm) else norm
    return getattr(first, "running_mean", None) is not None


class _Plan:
    """The sites that can be replaced and those that cannot, found before any change."""

    def __init__(self, option: NormOption, finder: Finder, chosen: set[str] | None):
        self.option = option
        # TLU must follow its norm, and so must the activation that a norm brings.
        self.owns = option.activation != "ReLU" or option.brings_activation
        self.left: list[Left] = []
        self.sites: list[Site] = []
        for site in finder.sites.values():
            if chosen is not None and site.name not in chosen:
                continue
            why = self._refusal(site)
            if why:
                self.left.append(Left(site.name, known.norm_name(site.norm), why))
            else:
                self.sites.append(site)
        self.joins = self._joins(finder.joins)

    def add_last_dim_norms(self, model: nn.Module, chosen: set[str] | None) -> None:
        for name, module in model.named_modules():
            if known.is_last_dim_norm(module) and (chosen is None or name in chosen):
                why = "it normalizes the last dimension, not channels of maps"
                self.left.append(Left(name, _HARMLESS[0], why))

    def _refusal(self, site: Site) -> str:
        """Why a site cannot be replaced; `""` if it can."""
        option = self.option
        if option.needs_statistics and not _has_statistics(site.norm):
            return f"it has no statistics, and {option.norm} fixes those it finds"
        if known.dims_of(site.norm, site.conv) is None:
            return "nothing tells how many spatial dimensions its input has"
        if option.weight:
            if site.conv is None:
                return f"no convolution whose output goes to it alone, which {option.weight} needs"
            if not known.is_plain(site.conv):
                return f"{option.weight} does not know {type(site.conv).__name__}"
        inside = site.place is not None and site.place.owner is site.norm
        if inside and site.activation not in known.REPLACED:
            return f"it has {site.activation} fused, which {option} has not"
        if not self.owns:
            return ""
        if site.activation is None:
            return f"nothing tells what follows it, and {option} brings an activation (inputs=?)"
        if site.activation not in ("", *known.REPLACED):
            return f"{site.activation} follows it, where {option} has an activation of its own"
        place = site.place
        if site.activation and not place.structural and not place.level.rewritable:
            return "its activation is a function in a forward that torch.fx cannot read"
        return ""

    def _joins(self, joins: list[Join]) -> list[Join]:
        if self.option.activation == "ReLU":
            return []
        wanted, kept = {id(site) for site in self.sites}, []
        for join in joins:
            if not all(id(site) in wanted for site in join.sites):
                continue
            if join.channels is None:
                why = "nothing tells how many channels it sees"
            elif not join.place.structural and not join.place.level.rewritable:
                why = "it stands in a forward that torch.fx cannot read"
            else:
                kept.append(join)
                continue
            self.left.append(Left(join.name, "ReLU after an addition", why))
        return kept

    def apply(self, *, fresh: bool) -> NormReport:
        report = NormReport(left=self.left)
        rewrites = Rewrites()
        for site in self.sites:
            before, place = known.norm_name(site.norm), site.place
            follows = site.activation in known.REPLACED
            fuse = follows and (place.structural or place.level.rewritable)
            norm = new_norm(site, self.option, activate=fuse, fresh=fresh)
            if fuse and not place.structural:
                rewrites.drop(place)
            elif fuse and place.owner is not site.norm:
                remove_activation(place)
            put_site(site, self.option, norm)
            report.changed.append(Change(site.name, before, str(self.option), fuse))
        for join in self.joins:
            name = join.name
            if join.place.structural:
                (attribute,) = join.place.names
                new = self.option.build_activation(join.channels)
                join.place.owner._modules[attribute] = new
            else:
                name = f"{join.within}.{rewrites.join(join, self.option)}".lstrip(".")
            report.changed.append(Change(name, "ReLU", self.option.activation, True))
        rewrites.make()
        return report
