"""Files that are read: those that have an end. Files that are written: whole, or not at all, and what writers leave."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from continual.errors import BadFolder

LARGEST_TEXT = 10_000_000
"""Bytes; what people write is smaller."""
AGE = 24 * 3600.0
"""Seconds after which nobody can be at work any more on what a writer has hidden beside its place: it takes seconds."""


def check_ordinary(path: Path) -> None:
    """An OSError where there is no file, or where it is no ordinary one, such as a pipe or ``/dev/zero``."""
    if not stat.S_ISREG(path.stat().st_mode):
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, "it is a folder" if path.is_dir() else "it is no ordinary file", str(path))


def read_bytes(path: Path) -> bytes:
    """What a file holds; an OSError where it cannot be read or :func:`is none <check_ordinary>`."""
    check_ordinary(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """What a text file holds; an OSError as :func:`read_bytes`, or where it is far too large, or a ValueError."""
    content = read_bytes(path) if path.stat().st_size <= LARGEST_TEXT else None
    if content is None:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST_TEXT} bytes", str(path))
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the path to write to, beside ``path`` and with its ending, which takes its place when all is written.

    Where that fails, as on a full disk, what lay there before stays. What is no ordinary file (``/dev/stdout``, a pipe)
    is written to as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()  # a link stays one
    beside = target.with_name(f".writing-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        yield beside
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole; :class:`~continual.errors.BadFolder` where it cannot be written."""
    with refused(f"{path} cannot be written"), whole(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Within it, what a system refuses is told as :class:`~continual.errors.BadFolder`: what, and why."""
    try:
        yield
    except OSError as error:
        raise BadFolder(f"{what}: {error.strerror or error}") from error


def clear(folder: Path, *patterns: str) -> None:
    """Delete what writers that were killed have left under these names in a folder."""
    for path in old(folder, *patterns):
        remove(path)


def old(folder: Path, *patterns: str) -> list[Path]:
    """The old ones of these names in a folder."""
    found = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # its writer has just taken it away
            if time.time() - path.stat().st_mtime > AGE:
                found.append(path)
    return found


def remove(path: Path) -> None:
    """Delete a file or a folder; what cannot be deleted stays, as it does no harm."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
