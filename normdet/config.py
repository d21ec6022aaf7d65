"""Config files: normdet's own and the user's, read as `normdet train` reads them."""

import difflib
import importlib.resources
import io
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from . import keys
from .errors import NormdetError
from .files.numbers import read_numbers
from .files.words import listed
from .keys import add_normdet_config, check_config, set_norm, use_normdet_parts
from .values import check_values


def __getattr__(name: str):
    """Keys used to be here; `normdet.config.NAME` still finds them."""
    if name.startswith("_") or not hasattr(keys, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(keys, name)


def config_folder() -> Path:
    """The folder of normdet's YAML files: in the installed package, or beside it in a checkout."""
    package = Path(str(importlib.resources.files("normdet")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Every config that :func:`config_file` takes, such as `coco/mask_rcnn_R_50_FPN_1x.yaml`."""
    folder = config_folder()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


def config_file(name: str) -> str:
    """The path of one of normdet's own configs.

    Raises:
        NormdetError: if there is none of that name, listing the nearest.
    """
    path = config_folder() / name
    if path.is_file():
        return str(path)
    close = difflib.get_close_matches(name, config_names(), n=3, cutoff=0.3)
    hint = f"; did you mean {listed(close, 'or')}?" if close else ""
    raise NormdetError(f"normdet has no config {name!r}{hint} (`normdet configs ls` lists them)")


def merged_config(name: str) -> str:
    """The text of one of normdet's own configs, its base files merged in: it stands alone.

    Raises:
        NormdetError: as :func:`config_file`.
    """
    source = Path(config_file(name))
    lines = source.read_text().splitlines(keepends=True)
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    merged = CfgNode.load_yaml_with_base(str(source), allow_unsafe=False)
    return comment + yaml.safe_dump(merged, default_flow_style=None)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads the numbers that detectron2's zoo spells for `eval`."""


def _read_numbers(loader: yaml.SafeLoader, node: yaml.Node):
    (text,) = loader.construct_sequence(node)
    return read_numbers(text)


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _read_numbers)


# Files that were read, as plain YAML: their size, time and place, and the text.
_PLAIN: dict[str, tuple[tuple[int, ...] | None, str]] = {}


class _File(CfgNode):
    """A config read from a file; a `DATASETS.ROOT` that begins with a dot starts at that file."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        """The file as plain YAML."""
        status = os.stat(filename) if os.path.isfile(filename) else None
        stamp = status and (status.st_size, status.st_mtime_ns, status.st_ino)
        # A comparison reads one file for each of its runs.
        if stamp and (known := _PLAIN.get(filename)) and known[0] == stamp:
            return io.StringIO(known[1])
        with super()._open_cfg(filename) as file:
            content = yaml.load(file, Loader=_Loader)
        text = yaml.safe_dump(content, sort_keys=False)
        _PLAIN[filename] = stamp, text
        return io.StringIO(text)

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict:
        """Load as detectron2 does. It calls this for each base too, with the base's own path."""
        content = super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)
        datasets = content.get("DATASETS")
        if isinstance(datasets, dict) and "ROOT" in datasets:
            datasets["ROOT"] = _placed(str(datasets["ROOT"]), Path(filename).parent)
        return content


def _placed(root: str, folder: Path) -> str:
    """A root that begins with a dot, made absolute from `folder`; any other as it is."""
    dotted = root.partition("/")[0] in (".", "..")
    return os.path.abspath(folder / root) if dotted else root


def load_config(
    path: str | Path,
    opts: Sequence[str] = (),
    norm: str | None = None,
    norm_parts: Iterable[str] | None = None,
) -> CfgNode:
    """Read a config as `normdet train` does: file, then the norm flag, then `KEY VALUE` pairs.

    Args:
        path: a YAML file, or the name of one of normdet's own.
        opts: `KEY VALUE` pairs, flat. If they set the batch size or accumulation, the file's
            `SOLVER.REFERENCE_WORLD_SIZE` rescales nothing.
        norm: what `--norm` says; `None` leaves the file's choice.
        norm_parts: see :func:`set_norm`.

    Returns:
        The config. It is not frozen, and it names our builders.

    Raises:
        NormdetError: on a missing or unsafe file, unknown keys and unfit values.
    """
    base = get_cfg()
    add_normdet_config(base)
    file = path if Path(path).is_file() else config_file(str(path))
    try:
        read = _File(base)
        read.merge_from_file(str(file), allow_unsafe=False)
        cfg = CfgNode(read)
    except Exception as error:  # YAML, yacs and file errors have no common base
        raise NormdetError(f"{file}: {_sentence(error)}") from error
    use_normdet_parts(cfg)
    if norm is not None:
        set_norm(cfg, norm, norm_parts)
    elif norm_parts is not None:
        raise NormdetError("--norm-parts names where --norm goes: give --norm too")
    try:
        cfg.merge_from_list(list(opts))
    except Exception as error:
        raise NormdetError(f"in the trailing KEY VALUE pairs: {_sentence(error)}") from error
    if {"SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE_STEPS"} & set(opts[::2]) and (
        "SOLVER.REFERENCE_WORLD_SIZE" not in opts[::2]
    ):
        cfg.SOLVER.REFERENCE_WORLD_SIZE = 0  # do not rescale a batch size that the user gave
    # The config may be saved into another folder, so the path becomes absolute.
    cfg.DATASETS.ROOT = _placed(cfg.DATASETS.ROOT, Path())
    use_normdet_parts(cfg)
    check_values(cfg)
    check_config(cfg)
    return cfg


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
