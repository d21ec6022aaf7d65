"""Any normalization as a detectron2 option: `--norm GN`, `GN+WS`, `FRN+TLU`, `SyncBN`.

Importing this registers our backbones and heads with detectron2.
"""

from . import modeling as modeling
from .config import add_normdet_config, config_file, set_norm
from .errors import NormdetError
from .options import NormOption, parse
from .version import __version__

__all__ = [
    "NormOption",
    "NormdetError",
    "__version__",
    "add_normdet_config",
    "config_file",
    "parse",
    "set_norm",
]
