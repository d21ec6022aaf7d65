"""Training and evaluation: one process, torchrun, many machines."""

from normdet.engine.launch import Interrupted, launch
from normdet.engine.run import train
from normdet.engine.step import NonFiniteLoss
from normdet.engine.trainer import Trainer

__all__ = ["Interrupted", "NonFiniteLoss", "Trainer", "launch", "train"]
