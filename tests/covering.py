"""A few options that cover every method, for tests that build whole detectors."""

from normdet.options import names


def covering_options() -> list[str]:
    """Each norm and initialization alone, each activation and weight method behind GN, and more."""
    behind_gn = [f"GN+{name}" for name in (*names("activation"), *names("weight"))]
    return [*names("norm"), *names("init"), *behind_gn, "FRN+TLU", "FRN+TLU+WS", "MeanOnlyBN+WN"]
