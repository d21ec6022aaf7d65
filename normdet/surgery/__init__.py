"""Give any network another norm: find its norms, and replace each with what belongs to it.

Needs torch alone.
"""

from .normalize import Bare, Change, Left, NormReport, knows_bare_parts, normalize

__all__ = ["Bare", "Change", "Left", "NormReport", "knows_bare_parts", "normalize"]
