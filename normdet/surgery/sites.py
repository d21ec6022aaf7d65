"""Find the norms of a network, each with the convolution before it and the activation behind it.

A norm's activation may be beside it, inside it (timm), in the convolution that calls both
(detectron2), or a level further up, as for `Sequential(conv, norm)` in a residual block. So every
module's graph is examined in turn, children first. It tells what follows a norm whose output is the
output of a child.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from . import known
from .graph import Level, level_of
from .recorded import RecordedLevel


@dataclass
class Place:
    """The place of an activation.

    Attributes:
        owner: the module whose forward calls it.
        names: of the activation among the owner's children or attributes; none for a function.
        level: the owner's graph; None if the owner calls it by a rule of its own.
        nodes: the calls in that graph.
        alone: whether nothing else calls these children.
    """

    owner: nn.Module
    names: tuple[str, ...] = ()
    level: Level | None = None
    nodes: list[fx.Node] = field(default_factory=list)
    alone: bool = True

    @property
    def structural(self) -> bool:
        """Whether the activation can be replaced without touching a forward."""
        return self.level is None or (bool(self.names) and self.alone)


@dataclass
class Site:
    """A norm that may be replaced.

    Attributes:
        name: the norm's, in the network.
        norm: the norm itself.
        places: the modules it is a child of, and its name there.
        conv: the convolution or linear layer before it; None if there is none.
        conv_places: the modules that it is a child of, and its name there.
        activation: `"ReLU"`, `"TLU"`, another activation's name, `""` if none follows directly, or
            None if it is not known.
            place: of the activation.
    """

    name: str
    norm: nn.Module
    places: list[tuple[nn.Module, str]]
    conv: nn.Module | None = None
    conv_places: list[tuple[nn.Module, str]] = field(default_factory=list)
    activation: str | None = None
    place: Place | None = None


@dataclass
class Join:
    """An activation behind an addition, as at the end of a residual block, `within` a module."""

    name: str
    within: str
    place: Place
    channels: int | None
    addition: fx.Node
    sites: list[Site]


class Finder:
    """Finds the sites and joins of a network.

    Args:
        model: the network.
        recorded: a record of its forward, for modules that have no other graph.

    Attributes:
        sites: by norm, in the order of definition.
        joins: the activations behind additions, in the order of their modules.
        blind: modules with norms or activations whose forward cannot be read.
    """

    def __init__(self, model: nn.Module, recorded: dict[nn.Module, RecordedLevel] | None = None):
        self._recorded = recorded or {}
        self._names = {module: name for name, module in model.named_modules()}
        self._uses = _count_uses(model)
        self.sites: dict[nn.Module, Site] = {}
        self.joins: list[Join] = []
        self.blind: list[nn.Module] = []
        # The site whose norm's output is a module's output.
        self._open: dict[nn.Module, Site] = {}
        self._settled: set[nn.Module] = set()
        for name, module in model.named_modules():
            if known.is_per_level(module):
                continue
            for attribute, child in module.named_children():
                if known.is_norm(child) and child not in self.sites:
                    full = f"{name}.{attribute}" if name else attribute
                    self.sites[child] = Site(full, child, self._uses[child])
        for module in _children_first(model):
            self._look(module)
        if (last := self._open.get(model)) is not None:
            last.activation = ""  # the network's own output

    def _look(self, module: nn.Module) -> None:
        if module in self.sites:
            self._look_at_norm(self.sites[module])
        elif known.is_unit(module):
            self._look_at_unit(module)
        elif any(child in self._open or child in self.sites for child in module.children()):
            self._look_inside(module)
        elif known.is_pyramid(module):
            self._look_inside(module)

    def _look_inside(self, module: nn.Module) -> None:
        level = self._recorded.get(module) or level_of(module)
        if level is not None:
            self._look_at_level(module, level)
        else:
            self.blind.append(module)
        if known.is_pyramid(module):
            for child in _within_containers(module):
                site = self._open.get(child)
                if site is not None and site.norm not in self._settled:
                    self._settle(site, "")

    def _look_at_norm(self, site: Site) -> None:
        inside = getattr(site.norm, "act", None)  # timm's norms call one of their own
        own = getattr(site.norm, "activation", None)  # ours fuse theirs
        name = known.activation_name(inside) if isinstance(inside, nn.Module) else own
        if name:
            site.activation, site.place = name, Place(site.norm)
        else:
            self._open[site.norm] = site

    def _look_at_unit(self, unit: nn.Module) -> None:
        site = self.sites.get(unit.norm)
        if site is None:
            return
        if known.is_conv(unit) or hasattr(unit, "in_channels"):
            site.conv, site.conv_places = unit, self._uses[unit]
        if unit.activation is None:
            if unit.norm in self._open:
                self._open[unit] = site
        else:
            name = known.activation_name(unit.activation)
            site.activation = name or type(unit.activation).__name__
            site.place = Place(unit, ("activation",))

    def _look_at_level(self, module: nn.Module, level: Level | RecordedLevel) -> None:
        for child in dict.fromkeys(module.children()):
            self._find_conv(module, level, child)
        found: dict[Site, list] = {}
        open_now = dict(self._open)
        for node in level.graph.nodes:
            site = open_now.get(level.child(node))
            if site is not None:
                found.setdefault(id(site), []).append((site, node))
        absorbed = set()
        for uses in found.values():
            absorbed |= self._resolve(module, level, uses[0][0], [node for _, node in uses])
        self._find_joins(module, level, absorbed)

    def _find_conv(self, module: nn.Module, level: Level, norm: nn.Module) -> None:
        site = self.sites.get(norm)
        if site is None or site.conv is not None:
            return
        sources = {level.child(level.source(node.args[0])) for node in level.calls(norm)
                   if node.args and isinstance(node.args[0], fx.Node)}  # fmt: skip
        if len(sources) != 1 or (conv := sources.pop()) is None or not known.is_conv(conv):
            return
        if all(len(node.users) == 1 for node in level.calls(conv)):
            site.conv, site.conv_places = conv, self._uses[conv]

    def _resolve(self, module: nn.Module, level: Level, site: Site, nodes: list) -> set[fx.Node]:
        """Find out what follows a norm whose output is used in a module's forward."""
        readers = [reader for node in nodes for reader in level.readers(node)]
        if readers and all(reader.op == "output" for reader in readers):
            if all(isinstance(reader.args[0], fx.Node) for reader in readers):
                self._open[module] = site
            return set()
        names = {level.activation(reader) for reader in readers}
        if names == {None} and not any(reader.op == "output" for reader in readers):
            self._settle(site, "")
        elif len(names) == 1 and len(readers) == len(nodes):
            self._settle(site, names.pop(), self._place(module, level, readers))
            return set(readers)
        else:
            self._settle(site, None)
        return set()

    def _settle(self, site: Site, activation: str | None, place: Place | None = None) -> None:
        """Note what follows a norm; it is unknown if several readers differ."""
        again = site.norm in self._settled
        agrees = site.activation == activation and (site.place is None) == (place is None)
        if again and not (agrees and place is None):
            activation, place = None, None
        self._settled.add(site.norm)
        site.activation, site.place = activation, place

    def _place(self, module: nn.Module, level: Level, nodes: list[fx.Node]) -> Place:
        children = [level.child(node) for node in nodes]
        if None in children:
            return Place(module, (), level, nodes)
        names = tuple(dict.fromkeys(node.target for node in nodes))
        alone = all(
            len(self._uses[child]) == 1 and all(call in nodes for call in level.calls(child))
            for child in children
        )
        return Place(module, names, level, nodes, alone)

    def _find_joins(self, module: nn.Module, level: Level, absorbed: set[fx.Node]) -> None:
        sites = [self._open[c] for c in module.children() if c in self._open]
        if not sites:
            return
        for node in level.graph.nodes:
            if node in absorbed or level.activation(node) not in known.REPLACED or not node.args:
                continue
            addition = level.source(node.args[0])
            if not level.is_addition(addition):
                continue
            operands = [a for a in addition.args if isinstance(a, fx.Node)]
            channels = next(filter(None, (self._channels(level, a) for a in operands)), None)
            place = self._place(module, level, [node])
            name = ".".join(filter(None, (self._names[module], *place.names)))
            self.joins.append(Join(name, self._names[module], place, channels, addition, sites))

    def _channels(self, level: Level, node: fx.Node) -> int | None:
        """How many channels a value of a level has, if its graph shows it."""
        child = level.child(node)
        if child is None:
            if level.is_addition(node):
                operands = [a for a in node.args if isinstance(a, fx.Node)]
                return next(filter(None, (self._channels(level, a) for a in operands)), None)
            return None
        if child in self._open:
            return known.channels_of_norm(self._open[child].norm)
        if hasattr(child, "out_channels"):
            return child.out_channels
        keeps = known.keeps_channels(child) and node.args and isinstance(node.args[0], fx.Node)
        return self._channels(level, node.args[0]) if keeps else None


def _within_containers(module: nn.Module) -> Iterator[nn.Module]:
    """The children, and those of lists and dicts among them."""
    for child in module.children():
        yield child
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _within_containers(child)


def _children_first(module: nn.Module, seen: set | None = None) -> Iterator[nn.Module]:
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    for child in module.children():
        yield from _children_first(child, seen)
    yield module


def _count_uses(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """All places of every module as a child."""
    uses: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None:
                uses.setdefault(child, []).append((module, name))
    return uses
