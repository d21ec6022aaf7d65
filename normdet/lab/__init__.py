"""Measure: compare norms, time them, examine a model, and report the results; `normdet[lab]`."""
