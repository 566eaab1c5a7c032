"""Files that are read: those that have an end."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

LARGEST_TEXT = 10_000_000
"""Bytes; what people write is smaller."""


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
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
