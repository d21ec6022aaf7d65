"""Weight files: safe loading, atomic saving, and facts about their origin."""

from .checkpointer import Checkpointer, LoadReport
from .checks import check_weights
from .facts import Facts, required_config
from .files import UnreadableFileError, load_file, save_file
from .importers import Imported, import_weights
from .model import load_model

__all__ = [
    "Checkpointer",
    "Facts",
    "Imported",
    "LoadReport",
    "UnreadableFileError",
    "check_weights",
    "import_weights",
    "load_file",
    "load_model",
    "required_config",
    "save_file",
]
