"""What a user can do wrong: every message says what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Mistake(Exception):
    """A user's mistake; the command line prints it without a traceback and exits with status 2."""


class UnknownName(Mistake):
    """A name that nothing is registered under."""


class BadOption(Mistake):
    """An option that does not exist, or a value of the wrong type or out of range."""


class BadStream(Mistake):
    """A stream that cannot be built as described."""


class BadChain(Mistake):
    """Strategies that cannot work together, or not on this stream or model."""


class BadData(Mistake):
    """Data that is missing or damaged."""


class BadFolder(Mistake):
    """A folder or file that cannot be read or written, or does not hold what it should."""


class Notice(UserWarning):
    """Something that a user should know and that stops nothing; the command line prints it in one line."""


def choices(names: Iterable[str]) -> str:
    """The names in one line, sorted."""
    return ", ".join(sorted(names)) or "none"


def nearest(given: str, names: Iterable[str]) -> str:
    """``"; did you mean 'ewc'?"``, or nothing where no name is near."""
    close = difflib.get_close_matches(given, list(names), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def unknown(kind: str, given: str, names: Iterable[str]) -> UnknownName:
    """The error for a name that is not among ``names``."""
    known = list(names)
    return UnknownName(f"no {kind} is named '{given}'{nearest(given, known)} (known: {choices(known)})")
