"""Colours of classes in every picture: overlays of predictions, contact sheets."""

# Okabe and Ito's that stand out from grey and from stains: people tell them apart whatever colours
# they see. Then, one after another, the bright or saturated colour that is farthest from all before
# it: any two of these 24 differ by 17 or more in CIEDE2000.
CLASS_COLOURS = (
    "#56B4E9", "#E69F00", "#F0E442", "#009E73", "#D55E00", "#CC79A7",
    "#0044FF", "#666600", "#88FFEE", "#BB1144", "#00EE44", "#FFBBAA",
    "#9988FF", "#775588", "#EECCFF", "#999966", "#007799", "#CC11EE",
    "#FF5555", "#007711", "#BBDDAA", "#885500", "#00BBBB", "#55AA00",
)  # fmt: skip


def class_colour(index: int) -> str:
    """`"#RRGGBB"` of the class with this number, from 0; after 24 they come again."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]
