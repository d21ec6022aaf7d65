"""Weight files: safe loading, atomic saving, and what is known about where they come from."""

from .checkpointer import Checkpointer, LoadReport
from .checks import check_weights
from .files import UnreadableFileError, load_file, save_file

__all__ = [
    "Checkpointer",
    "LoadReport",
    "UnreadableFileError",
    "check_weights",
    "load_file",
    "save_file",
]
