"""Who is told what is going on during a run, and how far it is with what takes long."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds before a progress bar appears."""
BETWEEN = 60.0
"""Seconds between two lines, where there is no terminal."""

_quiet = contextvars.ContextVar("quiet", default=False)


class Progress:
    """Told of everything, and silent: a subclass shows it. No method may wait for the device."""

    def begin(self, title: str, group: int, groups: int, tasks: int, samples: int) -> None:
        """A strategy's next group of seeds begins; a step learns ``samples`` samples."""

    def step(self, task: int, step: int, steps: int) -> None:
        """A step of a task begins."""

    def end(self) -> None:
        """The group is through."""

    def say(self, line: str) -> None:
        """Something that the user should know."""

    def note(self, line: str) -> None:
        """How it is done, for those who wonder."""


def waited(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """The items, which are waited for; where that takes long it is shown on standard error how far it is.

    On a terminal a bar shows it, elsewhere a line once a minute; nothing does within :func:`quietly`.
    """
    if _quiet.get() or sys.stderr is None:
        yield from items
    elif sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, delay=PATIENCE, leave=False)
    else:
        begun = told = time.monotonic()
        for number, item in enumerate(items):
            if number and (now := time.monotonic()) - told >= BETWEEN:
                told = now
                print(f"{what}: {number:,} of {total:,} after {now - begun:,.0f} s", file=sys.stderr, flush=True)
            yield item


def is_quiet() -> bool:
    """Whether it is within :func:`quietly`."""
    return _quiet.get()


def stay_quiet(quiet: bool) -> None:
    """As :func:`quietly`, to the end of this process."""
    _quiet.set(quiet)


@contextlib.contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Within it, if ``quiet``, nothing shows how far it is with what is :func:`waited` for."""
    before = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(before)
