"""The one exception for bad input."""


class NormdetError(ValueError):
    """Bad input from a user; the message is one sentence that names what and where."""
