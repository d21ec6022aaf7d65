"""Any normalization as a detectron2 option: `--norm GN`, `GN+WS`, `FRN+TLU`, `SyncBN`.

Importing this registers our backbones and heads with detectron2 as soon as detectron2's registries
exist. The import is cheap: what a name needs is imported when the name is first used.
"""

import importlib

from .errors import NormdetError
from .moved import keep_old_names
from .noise import keep_quiet
from .registration import register_with_detectron2
from .version import __version__

_HOME = {
    "NormOption": "options",
    "add_normdet_config": "keys",
    "config_file": "config",
    "get_default_optimizer_params": "solver",
    "normalize": "surgery",
    "parse": "options",
    "set_norm": "keys",
    "start_from_data": "modeling.start",
}
_MODULES = ("config", "keys", "layers", "modeling", "options", "solver")

__all__ = [
    "NormOption",
    "NormdetError",
    "__version__",
    "add_normdet_config",
    "config_file",
    "get_default_optimizer_params",
    "normalize",
    "parse",
    "set_norm",
    "start_from_data",
]

register_with_detectron2()
keep_old_names()
keep_quiet()


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
