"""A detector with its weights, from a config."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .checkpointer import Checkpointer, LoadReport


def load_model(
    cfg: CfgNode, weights: str | None = None, *, allow_unsafe: bool = False
) -> tuple[nn.Module, LoadReport]:
    """Build the detector of a config and load its weights.

    Args:
        cfg: with our keys.
        weights: path or URL; `MODEL.WEIGHTS` by default. An empty one leaves the start values.
        allow_unsafe: see :func:`normdet.weights.load_file`.

    Returns:
        The detector in test mode, and the report of what was loaded.

    Raises:
        NormdetError: as :meth:`Checkpointer.load`.
    """
    model = build_model(cfg).eval()
    checkpointer = Checkpointer(model, cfg=cfg, allow_unsafe=allow_unsafe)
    checkpointer.load(cfg.MODEL.WEIGHTS if weights is None else weights, checkpointables=[])
    return model, checkpointer.report
