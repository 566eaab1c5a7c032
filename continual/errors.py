"""What a user can do wrong: every message says what was given, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
from collections.abc import Iterable, Iterator

LONGEST = 200
"""So many letters of what was given are said again."""


class Mistake(Exception):
    """A user's mistake; the command line prints it without a traceback and exits with status 2."""


class UnknownName(Mistake):
    """A name that nothing is registered under."""


class BadOption(Mistake):
    """An option that does not exist, or a value of the wrong type or out of range."""


class NoOption(BadOption):
    """An option that does not exist; ``option`` is its name."""

    option: str


class BadStream(Mistake):
    """A stream that cannot be built as described."""


class BadChain(Mistake):
    """Strategies that cannot work together, or not on this stream or model."""


class BadData(Mistake):
    """Data that is missing or damaged."""


class BadFolder(Mistake):
    """A folder or file that cannot be read or written, or does not hold what it should."""


class OutOfMemory(Mistake):
    """What was asked for needs more memory than can be had."""


class Notice(UserWarning):
    """Something that a user should know and that stops nothing; the command line prints it in one line."""


@contextlib.contextmanager
def mistakes_of(what: str) -> Iterator[None]:
    """A mistake that is made within it says of what it is."""
    try:
        yield
    except Mistake as mistake:
        mistake.args = (f"{what}: {mistake}",)
        raise


def choices(names: Iterable[str]) -> str:
    """The names in one line, sorted."""
    return ", ".join(sorted(names)) or "none"


def listed(things: Iterable[object], most: int) -> str:
    """Things in one line, the first ``most`` of them and how many more there are."""
    every = list(map(str, things))
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def counted(number: int, noun: str, several: str = "") -> str:
    """A number of things, in words; ``several`` is their name, if not that of one with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {several or noun + 's'}"


def brief(given: object) -> str:
    """What was given as Python writes it, or the beginning and the end of that where it is long."""
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxlevel = 6
    short.maxstring = short.maxlong = short.maxother = 200
    try:
        return short.repr(given)
    except ValueError:  # a number of thousands of digits
        return "a number that is far too long"


def one_line(name: str) -> str:
    """A name whose spaces break no line, and whose other signs move no cursor and can be written in XML."""
    return "".join(one if one.isprintable() else "\ufffd" for one in " ".join(name.split()))


def is_text(given: str) -> bool:
    """Whether text can be a part of a name, a path and a record: it has no NUL, and all of it can be written."""
    return "\0" not in given and not any("\ud800" <= letter <= "\udfff" for letter in given)


def nearest(given: str, names: Iterable[str], most: int = 1) -> str:
    """``"; did you mean 'ewc'?"``, or nothing where no name is near; of several that are near, ``most`` are named."""
    close = [f"'{name}'" for name in difflib.get_close_matches(given[:LONGEST], list(names), n=most)]
    meant = " or ".join([", ".join(close[:-1]), close[-1]] if len(close) > 1 else close)
    return f"; did you mean {meant}?" if close else ""


def unknown(kind: str, given: str, names: Iterable[str], hint: str = "") -> UnknownName:
    """The error for a name that is not among ``names``; ``hint`` says what to do, where that is not the nearest."""
    known = list(names)
    told = f"; {hint}" if hint else nearest(given, known)
    return UnknownName(f"no {kind} is named {quoted(given)}{told} (known: {choices(known)})")


def quoted(given: str) -> str:
    """A name in quotes, as it was given where it can be shown so."""
    return f"'{given if len(given) <= LONGEST and given.isprintable() else brief(given)[1:-1]}'"
