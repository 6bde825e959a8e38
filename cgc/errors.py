"""The one exception that is a message to the user."""

from __future__ import annotations

from collections.abc import Iterable


class InputError(ValueError):
    """Say in one sentence what was expected, what came, and what to do; the CLI prints it and exits with 2."""


def some(names: Iterable[object], most: int = 5) -> str:
    """Write the first names of a list, for a sentence."""
    listed = [str(n) for n in names]
    return (", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")) or "none"
