"""The one exception for bad input."""


class NormdetError(ValueError):
    """Bad input from a user; the message is one sentence that names what and where."""

    # What the command line returns for it.
    exit_code = 2
