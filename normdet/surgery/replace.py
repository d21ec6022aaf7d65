"""Put a site's new norm, activation and convolution in place."""

import torch
from torch import fx, nn

from ..errors import NormdetError
from ..layers import BatchStatistics, FrozenBatchNorm2d, freeze_batch_norm
from ..options import NormOption
from . import known
from .graph import Level, rewrite
from .sites import Join, Place, Site

_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def new_norm(site: Site, option: NormOption, *, activate: bool, fresh: bool) -> nn.Module:
    """The new norm of a site.

    Args:
        activate: fuse the option's activation.
        fresh: start with gamma 1 and beta 0; else take over what both norms have, by key.
    """
    old = site.norm
    dims = known.dims_of(old, site.conv)
    channels = known.channels_of_norm(old)
    levels = len(old) if known.is_per_level(old) else 1
    norm = option.build_norm(channels, activate=activate, dims=dims, levels=levels)
    if not fresh:
        take_over(old, norm)
    tensors = [t for t in (*old.parameters(), *old.buffers()) if t.is_floating_point()]
    if tensors:
        norm.to(tensors[0].device, tensors[0].dtype)
    if _rests(site):
        for parameter in norm.parameters():
            parameter.requires_grad = False
        norm = freeze_batch_norm(norm)
    return norm.train(old.training)


@torch.no_grad()
def take_over(old: nn.Module, norm: nn.Module) -> None:
    """Copy another norm's state under the same keys, and its constants if both are of BN's kind."""
    for key in _STATE:
        mine, theirs = getattr(norm, key, None), getattr(old, key, None)
        if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
            if mine.shape == theirs.shape:
                mine.copy_(theirs)
    if known.is_per_level(old) and known.is_per_level(norm):
        for theirs, mine in zip(old, norm, strict=True):
            take_over(theirs, mine)
    kin = hasattr(old, "running_var") and isinstance(norm, BatchStatistics | FrozenBatchNorm2d)
    if kin:  # its running averages were learned under these constants
        norm.eps = old.eps
        if getattr(old, "momentum", None) is not None and hasattr(norm, "momentum"):
            norm.momentum = old.momentum


def _rests(site: Site) -> bool:
    """Whether a site is in a frozen part: its convolution, or else its norm, does not train."""
    deciding = site.conv if site.conv is not None else site.norm
    parameters = list(deciding.parameters(recurse=False))
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def put_site(site: Site, option: NormOption, norm: nn.Module) -> None:
    """Put a new norm in the place of a site's, and give its convolution the option's weight."""
    places = site.places
    if option.weight:
        conv = site.conv
        new = option.build_weight(conv)
        for owner, name in site.conv_places:
            owner._modules[name] = new
        places = [(new if owner is conv else owner, name) for owner, name in places]
    for owner, name in places:
        owner._modules[name] = norm


def remove_activation(place: Place) -> None:
    """Remove the modules of an activation that the norm before them now computes."""
    for name in place.names:
        if place.level is None:
            setattr(place.owner, name, None)
        else:
            place.owner._modules[name] = nn.Identity()


class Rewrites:
    """Collects changes of forwards, to make them module by module."""

    def __init__(self):
        self._levels: dict[nn.Module, Level] = {}

    def drop(self, place: Place) -> None:
        """Take calls of an activation out of a forward."""
        self._levels[place.owner] = place.level
        for node in place.nodes:
            node.replace_all_uses_with(node.args[0])
            place.level.graph.erase_node(node)

    def join(self, join: Join, option: NormOption) -> str:
        """Replace a forward's addition and activation by the option's join; return its name."""
        place = join.place
        (node,) = place.nodes
        name = next(
            name
            for name in ("join", *(f"join{k}" for k in range(2, 1000)))
            if not hasattr(place.owner, name)
        )
        place.owner.add_module(name, option.build_join(join.channels))
        added = join.addition
        graph = place.level.graph
        self._levels[place.owner] = place.level
        if len(added.users) == 1 and node.args[0] is added and not _has_constant(added):
            with graph.inserting_after(node):
                new = graph.call_module(name, tuple(added.args[:2]))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            graph.erase_node(added)
        else:
            place.owner._modules[name] = option.build_activation(join.channels)
            with graph.inserting_after(node):
                new = graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        return name

    def make(self) -> None:
        for module, level in self._levels.items():
            rewrite(module, level.graph)


def _has_constant(added: fx.Node) -> bool:
    nodes = [a for a in added.args if isinstance(a, fx.Node)]
    return len(nodes) != 2 or bool(added.kwargs)


def check_option(option: NormOption) -> None:
    """Refuse an option that cannot replace a norm."""
    if option.init:
        raise NormdetError(
            f"{option} is a start of residual blocks without norms: build the network with it, "
            "as MODEL.RESNETS.NORM"
        )
    if not option:
        raise NormdetError("normalize needs a norm, such as 'GN' or 'FRN+TLU'")
