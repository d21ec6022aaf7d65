"""`normdet bench`: measure time and memory beside every peer, in one run and one CSV.

`main` measures single operations (`layers`) or whole training steps (`step`).
"""

from normdet.lab.bench.command import main

__all__ = ["main"]
