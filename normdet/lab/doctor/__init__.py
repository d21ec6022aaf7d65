"""`normdet doctor`: whether stored batch statistics fit one's images, and how a run's norms go.

`main` writes a verdict with its evidence; :func:`examine` is the measurement alone.
"""

from .command import main
from .examination import Examination, examine

__all__ = ["Examination", "examine", "main"]
