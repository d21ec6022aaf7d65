"""`normdet doctor`: whether stored batch statistics fit the user's images; norms during a run.

`main` writes a verdict with its evidence; :func:`examine` only measures.
"""

from .command import main
from .examination import Examination, examine

__all__ = ["Examination", "examine", "main"]
