"""What goes wrong without a mistake in what was asked: no memory, a full disk, an interrupt, a reader that has left.

Each is told in one message on standard error, and the exit status says what it was:

    0    done
    1    done, and what was held against something is not as it should be (``reproduce``); or a traceback
    2    not done; the message says why and what to do
    130  interrupted (Ctrl-C); 143 ended by SIGTERM, 129 by SIGHUP: 128 and the number of the signal
    141  nobody reads what is printed any more (``continual list | head -1``), which is no failure and told of nowhere

What was finished by then is stored. An error that is none of these is a fault of the program, or of a strategy of the
user's, and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from continual.errors import BadChain, BadOption, Mistake, OutOfMemory

STOPS = ("SIGTERM", "SIGHUP")
"""The signals that ask a program to end; not every system has all of them."""
REFUSED = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "ENAMETOOLONG",
                 "ELOOP", "ESTALE")
    if hasattr(errno, name)
}  # fmt: skip
"""What a system says when it refuses to read or write."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed",
             "storage size calculation overflowed", "can't start new thread")  # fmt: skip
"""What PyTorch says, in a RuntimeError, when memory cannot be had."""

STORED = "runs that were finished are stored"
LONGEST = 4000
"""So many letters of a message are shown: nobody reads more, and names in it may be very long."""


class Ended(KeyboardInterrupt):
    """A signal that asks the program to end, which is done as for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Within it what goes wrong is told in one message, and raised again as the exit status."""
    try:
        with _ended():
            yield
    except Mistake as mistake:
        _leave(2, str(mistake), mistake)
    except Ended as end:
        name = signal.Signals(end.number).name
        _leave(128 + end.number, f"ended by {name}; {STORED}, and the same command goes on", end)
    except KeyboardInterrupt as end:
        _leave(130, f"interrupted; {STORED}, and the same command goes on", end)
    except BrokenPipeError as error:
        _unread(sys.stdout)
        _leave(141, "", error)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _leave(2, f"{where}{error.strerror}; {STORED}", error)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        _leave(2, f"not enough memory ({first_line(error)}); {STORED}", error)


def _leave(status: int, message: str, error: BaseException) -> None:
    import click

    if message:
        short = message if len(message) <= LONGEST else f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        try:
            click.echo(f"continual: {short}", err=True)
        except OSError:  # nobody reads it
            _unread(sys.stderr)
    raise SystemExit(status) from error


def _unread(stream: Any) -> None:
    """Let what is still to be written to a stream go nowhere, or Python complains of it at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """Within it the signals that end a program raise :class:`Ended`, so that what was begun is cleared away."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]
        # a signal that is ignored stays so (nohup)
        before = {
            number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def of_one(error: Exception) -> bool:
    """Whether an error is one strategy's, and not of memory, disks and networks, which others would meet, too."""
    if isinstance(error, Mistake):
        return isinstance(error, BadChain | BadOption)
    return not (isinstance(error, OSError) or is_memory(error))


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory cannot be had."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in NO_MEMORY)


def in_words(error: BaseException) -> str:
    """What an error is called and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextlib.contextmanager
def memory(what: str, help: str) -> Iterator[None]:
    """Within it, memory that cannot be had is told as :class:`~continual.errors.OutOfMemory`, with what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise OutOfMemory(f"{what}: not enough memory ({first_line(error)}); {help}") from error
