"""The one exception that is a message to the user."""


class InputError(ValueError):
    """Say in one sentence what was expected, what came, and what to do; the CLI prints it and exits with 2."""
