"""Measuring: compare norms, time them, examine a model, show what came of it; `normdet[lab]`."""
