"""How an option is written: words joined by `+`, the norm first."""

from collections.abc import Iterable

# The norm that keeps a pretrained backbone's statistics; other norms are compared with it.
FROZEN = "FrozenBN"


def words_of(text: str) -> list[str]:
    """`["GN", "WS"]` of `"GN+WS"`; none of `""`."""
    return text.split("+") if text else []


def text_of(words: Iterable[str]) -> str:
    """The inverse of :func:`words_of`; empty words are left out."""
    return "+".join(filter(None, words))


def with_norm(text: str, norm: str) -> str:
    """The option with another norm: `"EvalNorm+WS"` of `"BN+WS"`."""
    return text_of([norm, *words_of(text)[1:]])
