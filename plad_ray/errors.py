"""The one exception a user is meant to read."""


class PladError(ValueError):
    """Bad input or a run that cannot go on: the message names what, where and what would be right."""
