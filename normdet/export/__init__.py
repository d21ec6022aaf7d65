"""Export of models: ONNX, TorchScript, torch.export, and plain detectron2."""

from collections.abc import Sequence

from .fold import deployable
from .formats import FORMATS, export
from .record import recordable

__all__ = ["FORMATS", "deployable", "export", "main", "recordable"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command `normdet export`."""
    from .command import main

    return main(argv)
