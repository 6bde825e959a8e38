"""The one exception that is a message to the user."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 300
"""Characters of what another library says that are repeated."""


class InputError(ValueError):
    """Say in one sentence what was expected, what came, and what to do; the CLI prints it and exits with 2."""


def interrupt_in(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is, or is of: compiled kernels make a SystemError of one; None: it is none."""
    while isinstance(error, SystemError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None


def reason(error: BaseException) -> str:
    """Write what an error of another library says, for a sentence: in one line, which may quote the file's bytes."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def some(names: Iterable[object], most: int = 5) -> str:
    """Write the first names of a list, for a sentence."""
    listed = [str(n) for n in names]
    return (", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")) or "none"
